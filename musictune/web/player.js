// One clip, or two on one clock: they share the position, and one sounds at a time.

import { sound } from "./server.js";
import { Wave, peaksOf } from "./wave.js";

const ENOUGH = 3; // seconds to hear of each
const SLACK = 0.15; // players stop counting a little before the end

class Side {
  constructor(article, number) {
    this.article = article;
    this.number = number;
    this.audio = new Audio();
    this.audio.preload = "auto";
    this.canvas = article.querySelector("canvas");
    this.wave = new Wave(this.canvas);
    this.clear();
  }

  clear() {
    this.audio.pause();
    this.audio.removeAttribute("src");
    this.audio.load();
    this.heard = 0;
    this.last = null;
    this.ended = false;
    this.wave.show(null);
  }

  get seconds() {
    return this.audio.duration || 0;
  }

  get enough() {
    if (!this.seconds) return false;
    return this.heard >= Math.min(ENOUGH, this.seconds - SLACK) || (this.ended && this.heard >= 1);
  }
}

export class Player extends EventTarget {
  constructor(articles) {
    super();
    this.all = articles.map((article, number) => new Side(article, number));
    this.sides = this.all;
    this.current = 0;
    this.position = 0;
    this.turn = 0;
    this.eager = false; // asked to play before the sounds were there
    for (const side of this.all) this.listen(side);
  }

  get playing() {
    return this.sides.some((side) => !side.audio.paused && !side.audio.ended);
  }

  get enough() {
    return this.sides.every((side) => side.enough);
  }

  // Takes new sounds. Resolves to false when others came meanwhile.
  async load(paths, heard) {
    const { eager, current } = this;
    this.clear();
    this.eager = eager;
    if (eager && current < paths.length) this.current = current;
    const turn = this.turn;
    this.sides = this.all.slice(0, paths.length);
    const peaks = await Promise.all(paths.map(async (path) => peaksOf(await sound(path))));
    if (turn !== this.turn) return false;
    await Promise.all(this.sides.map((side, i) => this.open(side, paths[i])));
    if (turn !== this.turn) return false;
    const most = Math.max(...peaks.map((each) => Math.max(...each)));
    this.sides.forEach((side, i) => {
      side.heard = heard[i] || 0;
      side.wave.show(peaks[i], most);
    });
    this.tell();
    if (this.eager) this.play(this.current);
    return true;
  }

  open(side, path) {
    return new Promise((done, fail) => {
      side.audio.onloadedmetadata = done;
      side.audio.onerror = () => fail(new Error("This browser cannot play the music."));
      side.audio.src = path;
    });
  }

  clear() {
    this.turn++;
    this.eager = false;
    this.current = 0;
    this.position = 0;
    for (const side of this.all) side.clear();
    this.tell();
  }

  // Play or pause one side, or the current one.
  toggle(number = this.current) {
    if (!this.sides[number]) return;
    if (!this.sides[number].seconds) {
      this.current = number;
      this.eager = !this.eager;
    } else if (number === this.current && this.playing) this.pause();
    else this.play(number);
  }

  play(number) {
    const side = this.sides[number];
    if (!side || !side.seconds) return;
    this.pause();
    this.current = number;
    if (this.position >= side.seconds - 0.05) this.position = 0;
    this.place(side);
    side.ended = false;
    side.audio.play().catch((error) => {
      if (error.name === "AbortError") return; // paused before it began
      this.dispatchEvent(new CustomEvent("trouble", { detail: error.message }));
    });
    this.tick(side, this.turn);
  }

  pause() {
    for (const side of this.sides) {
      side.audio.pause();
      side.last = null;
    }
    this.tell();
  }

  other() {
    if (this.sides.length < 2) return;
    const number = 1 - this.current;
    if (this.playing) this.play(number);
    else {
      this.current = number;
      this.tell();
    }
  }

  seek(seconds) {
    const longest = Math.max(...this.sides.map((side) => side.seconds));
    this.position = Math.min(Math.max(seconds, 0), longest);
    for (const side of this.sides) this.place(side);
    this.tell();
  }

  place(side) {
    side.last = null;
    if (side.seconds) side.audio.currentTime = Math.min(this.position, side.seconds);
  }

  listen(side) {
    const { audio, canvas, number } = side;
    audio.addEventListener("play", () => this.dispatchEvent(new Event("begun")));
    audio.addEventListener("timeupdate", () => this.advance(side));
    audio.addEventListener("pause", () => this.tell());
    audio.addEventListener("ended", () => {
      this.advance(side);
      side.ended = true;
      this.tell();
    });
    side.article.querySelector(".play").addEventListener("click", () => this.toggle(number));
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      this.seek(((event.clientX - box.left) / box.width) * side.seconds);
    });
    canvas.addEventListener("keydown", (event) => {
      const at = this.position;
      const to = { Home: 0, End: side.seconds, PageUp: at + 5, PageDown: at - 5 };
      Object.assign(to, { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1 });
      if (!(event.key in to)) return;
      event.preventDefault();
      this.seek(to[event.key]);
    });
  }

  tick(side, turn) {
    const step = () => {
      if (turn !== this.turn || side.number !== this.current || side.audio.paused) return;
      this.advance(side);
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  // Counts what was really heard: a jump is no hearing.
  advance(side) {
    if (side.number !== this.current || side.audio.paused || side.audio.seeking) {
      if (!side.audio.ended) return;
    }
    const now = side.audio.currentTime;
    const step = side.last === null ? 0 : now - side.last;
    if (step > 0 && step < 1.5) side.heard += step;
    side.last = now;
    this.position = now;
    this.tell();
  }

  tell() {
    this.dispatchEvent(new Event("change"));
  }
}
