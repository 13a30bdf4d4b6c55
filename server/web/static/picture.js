// One live picture: fetches JPEGs one at a time, and draws the boxes that belong to exactly the frame that is shown.

const HUES = ["#ffb000", "#46c2ff", "#7be07b", "#ff7eb6", "#c9a2ff", "#ff8a5c", "#4fe0d0", "#e8e86a"];
const SVG = "http://www.w3.org/2000/svg";

export class Picture {
  constructor(figure, camera) {
    this.frame = figure.querySelector(".frame");
    this.image = figure.querySelector("img");
    this.overlay = figure.querySelector("svg");
    this.url = `/api/cameras/${encodeURIComponent(camera)}/picture/${figure.dataset.kind}.jpg`;
    this.events = new Map(); // seq -> event, for the few frames under way
    this.busy = false;
    this.wanted = null;
  }

  show(event) {
    this.events.set(event.seq, event);
    if (this.events.size > 30) this.events.delete(this.events.keys().next().value);
    this.wanted = event;
    if (!this.busy) this.fetch();
  }

  clear() {
    this.wanted = null;
    this.frame.classList.remove("shown");
    this.overlay.replaceChildren();
  }

  async fetch() {
    this.busy = true;
    while (this.wanted) {
      const event = this.wanted;
      this.wanted = null;
      try {
        const answer = await fetch(`${this.url}?seq=${event.seq}`);
        if (answer.ok) await this.swap(await answer.blob(), Number(answer.headers.get("X-Frame-Seq")), event);
      } catch (error) {
        console.warn("picture not loaded", this.url, error);
      }
    }
    this.busy = false;
  }

  async swap(blob, seq, event) {
    const address = URL.createObjectURL(blob);
    const next = new Image();
    next.src = address;
    await next.decode();
    const before = this.image.src;
    this.image.src = address;
    if (before.startsWith("blob:")) URL.revokeObjectURL(before);
    this.frame.style.aspectRatio = `${event.width} / ${event.height}`;
    this.frame.classList.add("shown");
    this.draw(this.events.get(seq) ?? { ...event, tracks: [] });
  }

  draw({ width, height, tracks }) {
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const size = Math.max(width / 58, 8);
    const marks = (tracks ?? []).flatMap(({ id, label, box: [x0, y0, x1, y1] }) => {
      const hue = HUES[id % HUES.length];
      const rect = element("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, stroke: hue });
      const text = `${label} ${id}`;
      const above = y0 > size * 1.4;
      const plate = element("rect", { x: x0, y: above ? y0 - size * 1.35 : y0, width: text.length * size * 0.6 + size * 0.5, height: size * 1.35 });
      plate.style.fill = hue;
      const name = element("text", { x: x0 + size * 0.3, y: above ? y0 - size * 0.35 : y0 + size, "font-size": size });
      name.style.fill = "#10141b";
      name.textContent = text;
      return [rect, plate, name];
    });
    this.overlay.replaceChildren(...marks);
  }
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
