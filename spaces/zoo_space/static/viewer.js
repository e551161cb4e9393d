/* A viewer of structures on 3Dmol.js: panels side by side with linked cameras, one slider over the frames.
   It asks nothing of any server.  The component's element says how it is doing in data-state:
   "empty", "ready" or "no-webgl", which frame is shown in data-frame, and whether edges are smoothed in
   data-smooth. */
(() => {
  "use strict";

  const TURN = 10; // degrees per arrow key
  const CORNER = [-0.577, -0.131, -0.094, 0.8]; // a crystal seen from the front, a little from above and the right

  let made = 0; // canvases so far, for their ids

  let webgl; // asked once: browsers allow only so many contexts
  let smooth = true; // antialiasing draws four times the pixels: without a GPU each picture would take seconds
  const drawable = () => {
    if (webgl !== undefined) return webgl;
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("webgl2") || canvas.getContext("webgl");
    webgl = Boolean(context);
    if (webgl) {
      const told = context.getExtension("WEBGL_debug_renderer_info");
      const renderer = context.getParameter(told ? told.UNMASKED_RENDERER_WEBGL : context.RENDERER);
      smooth = !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(renderer);
    }
    return webgl;
  };
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  class Panel {
    constructor(scene, panel, canvas) {
      this.scene = scene;
      this.frames = panel.frames;
      this.kinds = panel.kinds;
      this.bonds = new Map();
      for (const [a, b] of scene.bonds) {
        this.bonds.set(a, [...(this.bonds.get(a) || []), b]);
        this.bonds.set(b, [...(this.bonds.get(b) || []), a]);
      }
      if (!drawable()) throw new Error("no WebGL"); // 3Dmol.js itself would draw nothing and say nothing
      this.view = $3Dmol.createViewer(canvas, {
        id: `zv-${++made}`, backgroundAlpha: 0, orthographic: true, antialias: smooth, disableFog: true,
      });
      if (this.view.divwatcher) this.view.divwatcher.disconnect(); // it also draws on pages that are not shown
      this.drawBox();
      this.draw(panel.frames.length - 1);
    }

    /** Another frame, not rendered yet. */
    draw(index) {
      const k = Math.min(index, this.frames.length - 1);
      const x = floats(this.frames[k]);
      const kinds = bytes(this.kinds[k]);
      const { palette, radius } = this.scene;
      const atoms = [];
      for (let i = 0; i < kinds.length; i++) {
        const bonds = this.bonds.get(i) || [];
        atoms.push({
          elem: "C", serial: i, x: x[3 * i], y: x[3 * i + 1], z: x[3 * i + 2],
          bonds, bondOrder: bonds.map(() => 1), color: palette[kinds[i]].color,
          properties: { color: palette[kinds[i]].color, small: palette[kinds[i]].name === "H" },
        });
      }
      this.view.removeAllModels();
      const model = this.view.addModel();
      model.addAtoms(atoms);
      const colorfunc = (atom) => atom.properties.color;
      if (this.scene.bonds.length) {
        model.setStyle({}, { stick: { radius: 0.12, colorfunc }, sphere: { radius, colorfunc } });
      } else {
        model.setStyle({}, { sphere: { radius, colorfunc } });
      }
    }

    drawBox() {
      const { cell, origin } = this.scene;
      if (!cell) return;
      const corner = (i, j, k) => {
        const at = [0, 1, 2].map((d) => origin[d] + i * cell[0][d] + j * cell[1][d] + k * cell[2][d]);
        return { x: at[0], y: at[1], z: at[2] };
      };
      for (let axis = 0; axis < 3; axis++) {
        if (cell[axis].every((c) => c === 0)) continue; // not periodic that way
        for (const [p, q] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
          const start = [p, q];
          start.splice(axis, 0, 0);
          const end = [p, q];
          end.splice(axis, 0, 1);
          this.view.addLine({ start: corner(...start), end: corner(...end), color: "#888888" });
        }
      }
    }
  }

  class Viewer {
    constructor(root) {
      this.root = root;
      this.panels = [];
    }

    show(scene) {
      this.close();
      const body = this.root.querySelector(".zv-body");
      if (!scene || !scene.panels) {
        this.root.dataset.state = "empty";
        return;
      }
      const stage = element("div", { class: "zv-stage" });
      body.replaceChildren(stage);
      const canvases = scene.panels.map((panel) => {
        const canvas = element("div", {
          class: "zv-canvas", tabindex: "0", role: "img",
          "aria-label": `3D view, ${panel.title}. Arrow keys turn it, plus and minus zoom.`,
        });
        stage.append(element("figure", { class: "zv-panel" }, element("figcaption", {}, panel.title), canvas));
        return canvas;
      });
      try {
        this.panels = scene.panels.map((panel, i) => new Panel(scene, panel, canvases[i]));
      } catch (error) {
        body.replaceChildren(element("p", { class: "zv-sorry", role: "status" },
          "This browser shows no 3D (WebGL is off). All numbers, pictures and files below are complete."));
        this.root.dataset.state = "no-webgl";
        return;
      }
      const views = this.panels.map((panel) => panel.view);
      this.link(views);
      this.reset(scene); // of scenes that are still empty, which is quick
      this.render(this.panels);
      canvases.forEach((canvas, i) => canvas.addEventListener("keydown", (event) => this.key(event, views[i], scene)));
      body.append(this.controls(scene), this.legend(scene));
      if (scene.note) body.append(element("p", { class: "zv-note" }, scene.note));
      this.sizes = new ResizeObserver((seen) => {
        for (const { target, contentRect } of seen) {
          if (!contentRect.width || !contentRect.height) continue; // on a page that is not shown
          const view = views[canvases.indexOf(target)];
          view.resize();
        }
      });
      canvases.forEach((canvas) => this.sizes.observe(canvas));
      this.root.dataset.smooth = String(smooth);
      this.root.dataset.state = "ready";
    }

    controls(scene) {
      const n = Math.max(...scene.panels.map((panel) => panel.frames.length));
      const bar = element("div", { class: "zv-controls" });
      if (n > 1) {
        const told = element("output", { class: "zv-told" }, scene.frame_names[n - 1]);
        const slider = element("input", {
          type: "range", min: "0", max: String(n - 1), step: "1", value: String(n - 1), class: "zv-slider",
          "aria-label": "frame", "aria-valuetext": scene.frame_names[n - 1],
        });
        const go = () => {
          const k = Number(slider.value);
          if (this.root.dataset.frame !== String(k)) {
            const moving = this.panels.filter((panel) => panel.frames.length > 1);
            for (const panel of moving) panel.draw(k);
            this.render(moving);
          }
          told.textContent = scene.frame_names[k];
          slider.setAttribute("aria-valuetext", scene.frame_names[k]);
          this.root.dataset.frame = String(k);
        };
        slider.addEventListener("input", go);
        const play = element("button", { type: "button", class: "zv-button" }, "Play");
        play.addEventListener("click", () => this.play(play, slider, n, go));
        bar.append(play, slider, told);
        this.root.dataset.frame = String(n - 1); // the one that the panels begin with
      }
      const reset = element("button", { type: "button", class: "zv-button" }, "Reset view");
      reset.addEventListener("click", () => this.reset(scene));
      bar.append(reset);
      return bar;
    }

    play(button, slider, n, go) {
      if (this.timer) {
        this.pause();
        return;
      }
      if (Number(slider.value) === n - 1) slider.value = "0";
      go();
      button.textContent = "Pause";
      this.playing = button;
      this.timer = setInterval(() => {
        slider.value = String(Number(slider.value) + 1);
        go();
        if (Number(slider.value) >= n - 1) this.pause();
      }, Math.max(60, Math.min(500, 6000 / n)));
    }

    pause() {
      clearInterval(this.timer);
      this.timer = null;
      if (this.playing) this.playing.textContent = "Play";
    }

    /** Who is turned or zoomed takes the others along. */
    link(views) {
      for (const view of views) {
        view.setViewChangeCallback((now) => {
          if (!this.linked) return;
          this.linked = false;
          for (const other of views) if (other !== view) other.setView(now);
          this.linked = true;
        });
      }
    }

    /** The same view of the whole in all panels. */
    reset(scene) {
      this.linked = false;
      const [first] = this.panels.map((panel) => panel.view);
      first.zoomTo();
      const { clientWidth, clientHeight } = first.container; // what is fitted is the width
      first.zoom((scene.bonds.length ? 1.1 : 1.5) * Math.min(1, clientHeight / Math.max(clientWidth, 1)));
      const view = first.getView(); // position, zoom, quaternion
      if (!scene.bonds.length) view.splice(4, 4, ...CORNER);
      for (const panel of this.panels) panel.view.setView(view);
      this.linked = true;
    }

    render(panels) {
      this.linked = false; // nobody was turned
      for (const panel of panels) panel.view.render();
      this.linked = true;
    }

    legend(scene) {
      const list = element("ul", { class: "zv-legend", "aria-label": "colours" });
      for (const { name, color, present } of scene.palette) {
        if (!present) continue;
        const swatch = element("span", { class: "zv-swatch", "aria-hidden": "true" });
        swatch.style.background = color;
        list.append(element("li", {}, swatch, name));
      }
      return list;
    }

    key(event, view, scene) {
      const turns = { ArrowLeft: [-TURN, "y"], ArrowRight: [TURN, "y"], ArrowUp: [-TURN, "x"], ArrowDown: [TURN, "x"] };
      if (turns[event.key]) view.rotate(...turns[event.key]);
      else if (event.key === "+" || event.key === "=") view.zoom(1.15);
      else if (event.key === "-") view.zoom(1 / 1.15);
      else if (event.key === "0" || event.key === "Home") this.reset(scene);
      else return;
      event.preventDefault();
    }

    close() {
      this.pause();
      if (this.sizes) this.sizes.disconnect();
      for (const { view } of this.panels) {
        view.removeAllModels();
        const canvas = view.getCanvas && view.getCanvas();
        const context = canvas && (canvas.getContext("webgl2") || canvas.getContext("webgl"));
        const loss = context && context.getExtension("WEBGL_lose_context");
        if (loss) loss.loseContext(); // browsers allow only so many
      }
      this.panels = [];
      delete this.root.dataset.frame;
    }
  }

  window.zooViewer = {
    mount(element_, props, watch) {
      const root = element_.querySelector(".zoo-viewer");
      const viewer = new Viewer(root);
      viewer.show(props.value);
      watch("value", () => viewer.show(props.value));
    },
  };
})();
