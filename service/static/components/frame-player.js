// A slider and a play button for the frames of a trajectory.

import { h } from "../lib/dom.js";
import { tell } from "../lib/i18n.js";

const SECONDS = 4; // playing time from the first frame to the last
const STILLS = 8; // frames shown, one per second, if the system prefers reduced motion

/**
 * `load(count)` shows the player at the last frame, `refresh()` shows the frame again, `hide()` hides it.
 * @param {(index: number) => void} onFrame
 * @param {(index: number) => [string, object]} caption the text beside the slider
 */
export function player(onFrame, caption) {
  const scrub = () => (stop(), turn(Number(slider.value)));
  const slider = h("input", { type: "range", min: 0, step: 1, label: "player.frame", on: { input: scrub } });
  const play = h("button", { type: "button", class: "play", on: { click: () => (timer ? stop() : start()) } });
  const text = h("span", { class: "caption" }); // no live region: the slider announces its value
  const node = h("div", { class: "player", hidden: true }, play, slider, text);
  let timer = null;

  function turn(index) {
    slider.value = index;
    tell(text, caption(index));
    slider.setAttribute("aria-valuetext", text.textContent);
    onFrame(index);
  }

  function start() {
    const last = Number(slider.max);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const stride = calm ? Math.ceil(last / STILLS) : 1;
    if (Number(slider.value) === last) turn(0);
    tell(play, "player.pause");
    const next = () => {
      turn(Math.min(Number(slider.value) + stride, last));
      if (Number(slider.value) === last) stop();
    };
    timer = setInterval(next, calm ? 1000 : (1000 * SECONDS) / last);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    tell(play, "player.play");
  }

  return {
    node,
    load(count) {
      stop();
      slider.max = count - 1;
      node.hidden = false;
      turn(count - 1);
    },
    refresh: () => turn(Number(slider.value)),
    hide() {
      stop();
      node.hidden = true;
    },
  };
}
