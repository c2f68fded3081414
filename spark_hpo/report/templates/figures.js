// Draws a figure of plotly in the colours of the page, and again when the page turns dark or light.
"use strict";
const Figures = (function () {
  const narrow = window.matchMedia("(max-width: 640px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");

  function look(layout) {
    const style = getComputedStyle(document.documentElement);
    const line = style.getPropertyValue("--line").trim();
    const changes = { "font.color": style.getPropertyValue("--muted").trim() };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      changes[axis + ".gridcolor"] = line;
      changes[axis + ".linecolor"] = line;
    }
    (layout.annotations || []).forEach((note, i) => {
      if (note.name === "label") {
        changes["annotations[" + i + "].bgcolor"] = style.getPropertyValue("--card").trim();
      }
    });
    changes["hoverlabel.bgcolor"] = style.getPropertyValue("--card").trim();
    changes["hoverlabel.font.color"] = style.getPropertyValue("--text").trim();
    return changes;
  }

  // Returns a promise. An element that has a figure already keeps its zoom.
  function draw(element, figure) {
    const layout = figure.layout;
    layout.margin = Object.assign({ l: 8, r: 8, t: 24, b: 8 }, layout.margin);
    layout.uirevision = "kept";
    // Dragging with a finger moves the page, not the picture.
    layout.dragmode = touch.matches ? false : "zoom";
    if (narrow.matches) {
      layout.font = Object.assign({ size: 11 }, layout.font);
    }
    const config = { displaylogo: false, responsive: true, displayModeBar: touch.matches ? false : "hover" };
    return Plotly.react(element, figure.data, layout, config)
      .then(() => Plotly.relayout(element, look(layout)))
      .then(hideDrawing.bind(null, element))
      .then(() => element.classList.add("drawn"));
  }

  // The label of the element says what the drawing shows; a screen reader would read each tick of it.
  function hideDrawing(element) {
    for (const drawing of element.querySelectorAll(".main-svg")) {
      drawing.setAttribute("aria-hidden", "true");
    }
  }

  dark.addEventListener("change", () => {
    for (const element of document.querySelectorAll(".plot.drawn")) {
      Plotly.relayout(element, look(element.layout));
    }
  });
  return { draw };
})();
