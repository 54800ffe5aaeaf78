// The slider: which two pictures lie on each other, and where the one ends and the other begins.
for (const wipe of document.querySelectorAll(".wipe")) {
  const [left, right] = wipe.querySelectorAll("select");
  const range = wipe.querySelector("input");
  const pictures = wipe.querySelectorAll("img");
  const show = () => {
    pictures.forEach((picture, index) => {
      picture.classList.toggle("left", index === Number(left.value));
      picture.classList.toggle("right", index === Number(right.value));
    });
    wipe.style.setProperty("--at", range.value + "%");
  };
  wipe.addEventListener("input", show);
  show(); // a browser may have kept other values across a reload
}
