// Keys that act wherever the focus is, except where a control has a use for them itself.

function own(target, key) {
  if (!(target instanceof Element)) return false;
  if (target.matches("input:not([type=range]):not([type=checkbox]), textarea, select")) return true;
  if (target.matches("input[type=range]")) return key.startsWith("Arrow");
  const pressed = key === " " || key === "Enter";
  return pressed && target.matches("button, summary, input[type=checkbox], a");
}

export function listenToKeys(actions, wanted) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const act = actions[key];
    if (!act || !wanted() || own(event.target, key)) return;
    event.preventDefault();
    if (!event.repeat || key.startsWith("Arrow")) act();
  });
  // A click leaves the focus on its button, where the space bar would press it again.
  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest("button");
    if (button && event.detail > 0) button.blur();
  });
}
