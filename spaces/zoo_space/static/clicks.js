/* A click while a job runs asks for another one after it, so the second click of a double click is no click. */
document.addEventListener(
  "click",
  (event) => {
    if (event.detail < 2 || !event.target.closest("button[id$='-run'], button[id^='example-'], button[id^='start-']"))
      return;
    event.preventDefault();
    event.stopImmediatePropagation();
  },
  true,
);
