// The states and the ways between them, with the number of nodes in each: across on a wide screen, down on a narrow one.

import { h } from "./dom.js";
import { link } from "./parts.js";
import { number, words } from "./text.js";

const WIDTH = 152;
const HEIGHT = 58;

// Where each box is, and the lines between them: a heavy arrow each, and a light one for a new registration.
const ACROSS = {
  size: [936, 268],
  boxes: {
    pending_registration: [24, 48],
    accepted: [208, 48],
    awaiting_ack: [392, 48],
    ack_received: [576, 48],
    active: [760, 48],
    rejected: [24, 178],
    ack_timed_out: [300, 178],
    liveness_expired: [760, 178],
  },
  ways: [
    "M176 77H204",
    "M360 77H388",
    "M544 77H572",
    "M728 77H756",
    "M284 48V24H652V44",
    "M100 106V174",
    "M284 106V140H346V174",
    "M468 106V140H406V174",
    "M836 106V174",
  ],
  again: ["M100 236V262H10V77H20", "M376 236V262H100", "M836 236V262H376"],
};
const DOWN = {
  size: [352, 532],
  boxes: {
    pending_registration: [16, 34],
    accepted: [16, 136],
    awaiting_ack: [16, 238],
    ack_received: [16, 340],
    active: [16, 442],
    rejected: [184, 34],
    ack_timed_out: [184, 187],
    liveness_expired: [184, 442],
  },
  ways: [
    "M92 92V132",
    "M92 194V234",
    "M92 296V336",
    "M92 398V438",
    "M16 165H6V369H12",
    "M168 63H180",
    "M168 165H260V183",
    "M168 267H260V249",
    "M168 471H180",
  ],
  again: ["M336 63H346V14H92V30", "M336 216H346V63", "M336 471H346V216"],
};

const narrow = matchMedia("(max-width: 700px)");

export function diagram(counts, domain) {
  const { size, boxes, ways, again } = narrow.matches ? DOWN : ACROSS;
  return h(
    "svg",
    { key: narrow.matches ? "down" : "across", class: "states", viewBox: `0 0 ${size[0]} ${size[1]}`, role: "group", "aria-label": "States" },
    h(
      "defs",
      {},
      ...["way", "again"].map((name) =>
        h(
          "marker",
          { key: name, id: name, class: name, viewBox: "0 0 8 8", refX: "6", refY: "4", markerWidth: "7", markerHeight: "7", orient: "auto-start-reverse" },
          h("path", { d: "M0 0 8 4 0 8z" }),
        ),
      ),
    ),
    ...again.map((d, index) => h("path", { key: d, class: "again", d, "marker-end": index === 0 && "url(#again)" })), // the others join it
    ...ways.map((d) => h("path", { key: d, class: "way", d, "marker-end": "url(#way)" })),
    ...Object.entries(boxes).map(([name, [x, y]]) =>
      h(
        "a",
        { key: name, class: `box ${name}`, href: link("entities", { state: name, domain }), "aria-label": `${words(name)}: ${number(counts[name])}` },
        h("rect", { x, y, width: WIDTH, height: HEIGHT, rx: "7" }),
        h("rect", { class: "mark", x, y, width: "5", height: HEIGHT, rx: "2.5" }),
        h("text", { class: "name", x: x + 16, y: y + 22 }, words(name)),
        h("text", { class: "count", x: x + 16, y: y + 47 }, number(counts[name])),
      ),
    ),
  );
}
