let toasts = [];
let listener = () => {};
let next = 1;

export function signal(set) {
  listener = set;
  return () => { listener = () => {}; };
}

export function show(text, kind = "info") {
  const toast = { id: next++, text, kind };
  toasts = [...toasts, toast];
  listener(toasts);
  setTimeout(() => {
    toasts = toasts.filter((other) => other !== toast);
    listener(toasts);
  }, kind === "error" ? 10000 : 4000);
}
