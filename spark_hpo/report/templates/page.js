// Draws all figures of a report.
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = Array.from(document.querySelectorAll(".plot"));
  Promise.all(plots.map((element) => Figures.draw(element, figures[element.id]))).then(() =>
    document.documentElement.classList.add("drawn")
  );
})();
