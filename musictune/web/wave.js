// The picture of a sound: its peaks, how far it has played, and where a click would go.

const BUCKETS = 1200;
const HEADER = 44; // bytes of the WAV files that our server writes
const BAR = 3; // pixels with the gap

export function peaksOf(buffer) {
  const view = new DataView(buffer);
  const channels = view.getUint16(22, true);
  const samples = new Int16Array(buffer, HEADER, (buffer.byteLength - HEADER) >> 1);
  const frames = Math.floor(samples.length / channels);
  const peaks = new Float32Array(Math.max(1, Math.min(BUCKETS, frames)));
  for (let i = 0; i < frames * channels; i++) {
    const place = Math.floor((Math.floor(i / channels) * peaks.length) / frames);
    const size = Math.abs(samples[i]) / 32768;
    if (size > peaks[place]) peaks[place] = size;
  }
  return peaks;
}

export class Wave {
  constructor(canvas) {
    this.canvas = canvas;
    this.peaks = null;
    this.share = 0;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // Peaks of all sides of a trial are drawn on one scale, `most` being its top.
  show(peaks, most) {
    this.peaks = peaks;
    this.most = most || 1;
    this.draw();
  }

  at(share) {
    this.share = share;
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !height) return;
    const dense = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    const style = getComputedStyle(canvas);
    const [played, still] = ["--played", "--still"].map((name) => style.getPropertyValue(name));
    const bars = Math.max(1, Math.floor(width / BAR));
    const reached = this.share * width;
    for (let bar = 0; bar < bars; bar++) {
      const size = this.peaks ? this.size(bar, bars) : 0;
      const tall = Math.max(2, size * (height - 6));
      pen.fillStyle = bar * BAR < reached ? played : still;
      pen.fillRect(bar * BAR, (height - tall) / 2, BAR - 1, tall);
    }
    if (this.share > 0) {
      pen.fillStyle = played;
      pen.fillRect(Math.min(reached, width - 2), 0, 2, height);
    }
  }

  size(bar, bars) {
    const { peaks } = this;
    const first = Math.floor((bar * peaks.length) / bars);
    const last = Math.max(first + 1, Math.floor(((bar + 1) * peaks.length) / bars));
    let most = 0;
    for (let i = first; i < last; i++) most = Math.max(most, peaks[i]);
    return Math.min(1, most / this.most);
  }
}
