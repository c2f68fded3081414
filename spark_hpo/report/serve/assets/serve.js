// Keeps a page up to date: small parts as the server sends them, the rest by loading the page again.
"use strict";
(function () {
  const follow = document.body.dataset.follow;
  const said = document.getElementById("connection");
  let figures = JSON.parse(document.getElementById("figures").textContent);
  let drawn = {}; // the text of each figure that is shown, by the id of its element
  let version = Number(document.body.dataset.version);
  let wanted = version;
  let loading = false;
  let latest = []; // results
  let notBefore = 0; // loading a page of many trials is work for the server

  let sequence = Number(document.body.dataset.sequence || 0); // of the last event in the pictures

  // Adds results to the picture of the history, until the next page has them.
  function addPoints(points) {
    const figure = figures.history;
    if (!figure || !figure.layout.meta) return;
    const best = figure.data.find((trace) => trace.name === "best so far");
    const fresh = points.filter((point) => point[0] > sequence);
    for (const [number, seconds, value, rung, label, bestValue] of fresh) {
      const x = seconds / figure.layout.meta.seconds;
      const dots = figure.data.find((trace) => trace.name === "rung " + rung);
      if (dots) {
        dots.x.push(x);
        dots.y.push(value);
        dots.text.push(label);
      }
      if (best) {
        best.x.push(x);
        best.y.push(bestValue);
      }
      sequence = number;
    }
    const element = document.getElementById("history");
    if (fresh.length && element && drawn.history) show(element);
  }

  // Pictures are drawn when they come near the window.
  const seen = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => show(entry.target)),
    { rootMargin: "400px" }
  );

  function show(element) {
    const figure = figures[element.id];
    const text = JSON.stringify(figure);
    if (!figure || drawn[element.id] === text || !window.Plotly) return;
    drawn[element.id] = text;
    Figures.draw(element, JSON.parse(text)).then(() => {
      const plots = Array.from(document.querySelectorAll(".plot"));
      document.documentElement.classList.toggle("drawn", plots.some((plot) => plot.classList.contains("drawn")));
    });
  }

  function watchPlots() {
    seen.disconnect();
    for (const element of document.querySelectorAll(".plot")) {
      const figure = figures[element.id];
      if (figure) element.style.minHeight = (figure.layout.height || 380) + "px"; // nothing moves when it is drawn
      seen.observe(element);
    }
  }

  function patch(id, html) {
    const element = document.getElementById(id);
    if (!element) return false;
    const kept = keepState(element);
    element.innerHTML = html;
    kept();
    return true;
  }

  // Remembers what a person has opened, chosen and focused inside an element; returns what restores it.
  function keepState(element) {
    const open = Array.from(element.querySelectorAll("details")).map((item) => item.open);
    const chosen = Array.from(element.querySelectorAll("input[type=checkbox]:checked")).map((box) => box.value);
    const focusable = "a, button, input, summary, [tabindex]";
    const focused = Array.from(element.querySelectorAll(focusable)).indexOf(document.activeElement);
    return () => {
      element.querySelectorAll("details").forEach((item, i) => (item.open = i < open.length ? open[i] : item.open));
      element.querySelectorAll("input[type=checkbox]").forEach((box) => (box.checked = chosen.includes(box.value)));
      if (focused >= 0) element.querySelectorAll(focusable)[focused]?.focus({ preventScroll: true });
    };
  }

  // Takes over the sections that have changed. Pictures keep their elements, and so their zoom.
  function take(fresh) {
    const main = document.getElementById("main");
    const next = fresh.getElementById("main");
    figures = JSON.parse(fresh.getElementById("figures").textContent);
    sequence = Number(fresh.body.dataset.sequence || 0);
    addPoints(latest);
    const same = (one, other) => one && one.dataset.text === other.dataset.text;
    for (const section of next.querySelectorAll(":scope > *")) section.dataset.text = section.innerHTML;
    const old = Array.from(main.querySelectorAll(":scope > *"));
    const placed = Array.from(next.children).map((section) => {
      const before = old.find((item) => section.id && item.id === section.id);
      if (same(before, section)) return before;
      const kept = before ? keepState(before) : () => {};
      for (const plot of section.querySelectorAll(".plot")) {
        const shown = before && before.querySelector("#" + CSS.escape(plot.id));
        if (shown) {
          shown.setAttribute("aria-label", plot.getAttribute("aria-label"));
          plot.replaceWith(shown);
        } else {
          delete drawn[plot.id];
        }
      }
      if (before) {
        before.replaceChildren(...section.childNodes);
        before.removeAttribute("aria-busy");
        before.dataset.text = section.dataset.text;
        kept();
        return before;
      }
      return section;
    });
    placed.forEach((section, i) => main.children[i] !== section && main.insertBefore(section, main.children[i] || null));
    while (main.children.length > placed.length) main.lastElementChild.remove();
    watchPlots();
  }

  async function refresh() {
    if (loading || wanted === version || document.hidden) return;
    const pause = notBefore - performance.now();
    if (pause > 0) {
      setTimeout(refresh, pause);
      return;
    }
    loading = true;
    const began = performance.now();
    const aim = wanted;
    try {
      const address = new URL(location.href);
      address.searchParams.set("fresh", "1");
      const answer = await fetch(address, { credentials: "same-origin" });
      if (answer.ok) {
        take(new DOMParser().parseFromString(await answer.text(), "text/html"));
        version = aim;
      }
    } catch (error) {
      said.textContent = "Connecting again…"; // the stream says when it is back
    }
    loading = false;
    notBefore = performance.now() + Math.max(1000, 3 * (performance.now() - began));
    if (wanted !== version) setTimeout(refresh, 1000);
  }

  function listen() {
    const source = new EventSource("events?follow=" + encodeURIComponent(follow));
    source.onopen = () => (said.textContent = "Live: this page follows the studies as they run.");
    source.onerror = () => (said.textContent = "No connection to the server. The page shows what it last knew.");
    source.onmessage = (message) => {
      const news = JSON.parse(message.data);
      for (const [id, html] of Object.entries(news.parts)) {
        if (!patch(id, html) && id.startsWith("study-")) wanted -= 1; // a study that the list lacks
      }
      if (news.version !== undefined && follow !== "all") wanted = news.version;
      latest = news.points;
      addPoints(latest);
      refresh();
    };
    document.addEventListener("visibilitychange", refresh);
  }

  async function send(verb, text, button) {
    const answered = document.getElementById("answered");
    button.disabled = true;
    answered.textContent = "Asking the driver…";
    try {
      const csrf = document.querySelector("meta[name=csrf]").content;
      const answer = await fetch("steer?id=" + encodeURIComponent(follow), {
        method: "POST",
        credentials: "same-origin",
        headers: { "content-type": "application/json", "x-spark-hpo": csrf },
        body: JSON.stringify({ verb, text }),
      });
      answered.textContent = await answer.text();
      answered.classList.toggle("bad", !answer.ok);
    } catch (error) {
      answered.textContent = "The server did not answer. Try again.";
    }
    button.disabled = false;
  }

  document.querySelectorAll("[data-verb]").forEach((element) => {
    const isForm = element.tagName === "FORM";
    element.addEventListener(isForm ? "submit" : "click", (event) => {
      event.preventDefault();
      const button = isForm ? element.querySelector("button") : element;
      send(element.dataset.verb, isForm ? element.querySelector("input").value : "", button);
    });
  });

  for (const section of document.querySelectorAll("#main > *")) section.dataset.text = "";
  watchPlots();
  if (follow !== "none") listen();
})();
