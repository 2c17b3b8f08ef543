// The instances over one log, whose the lanes are, and the servers that hold it. Of a service with a log of its own there is nothing to show.

import { byId, foreign, h, show } from "./dom.js";
import { age, between, count, number, size } from "./format.js";

/** What was seen of the servers before so many seconds is said to be old. */
const OLD_S = 10;

/** Shows the cluster of a status, or nothing. */
export function draw({ cluster, now }) {
  const place = byId("cluster");
  place.hidden = !cluster;
  if (!cluster) return;
  const unowned = cluster.lanes.filter((lane) => lane.owner === null);
  show(byId("cluster-said"),
    unowned.length > 0 && h("li", null, `${count(unowned.length, "lane has", "lanes have")} no owner: `, foreign(unowned.map((lane) => lane.lane).join(", "))),
    !cluster.is_kept && h("li", null, "This instance can't write to the log: others take its lanes."));
  const heads = ["Instance", "State", "Joined", "Lanes", "Which"];
  const cells = cluster.instances.map((each) => [
    [foreign(each.name), each.id === cluster.instance && " (this one)"],
    [state(each.is_live ? "good" : "bad", each.is_live ? "live" : "silent"), each.is_leader && [" ", state("idle", "leads")]],
    ago(each.since, now),
    number(each.lanes),
    foreign(cluster.lanes.filter((lane) => lane.owner === each.id).map((lane) => lane.lane).join(", ") || "–"),
  ]);
  show(byId("cluster-instances"), cells.length === 0 ? h("p", { class: "empty" }, "No instance has joined yet.") : table("Instances", heads, cells, 3));
  show(byId("cluster-stream"), cluster.stream ? stream(cluster.stream) : h("p", { class: "empty" }, "The servers that hold the log have not been looked at yet."));
}

function stream(of) {
  const heads = ["Server", "State", "Behind"];
  const leader = of.leader === null ? [] : [[foreign(of.leader), state("good", "leads"), "–"]];
  const cells = leader.concat(of.replicas.map((each) => [
    foreign(each.name),
    each.is_offline ? state("bad", "offline") : each.is_current ? state("good", "up to date") : state("warn", "behind"),
    number(each.lag),
  ]));
  const limit = of.max_bytes === null ? "" : ` of ${size(of.max_bytes)}`;
  return [
    of.leader === null && h("p", { class: "error" }, "No server leads: there is no majority, and reports are refused until one is back."),
    table("Servers that hold the log", heads, cells, 2),
    h("p", { class: "note" }, `The stream takes ${size(of.bytes)}${limit}.`, of.age_s > OLD_S && ` Seen ${age(of.age_s)} ago.`),
  ];
}

function state(kind, word) {
  return h("span", { class: `state ${kind}` }, word);
}

function ago(at, now) {
  const span = between(at, now);
  return span === null ? "–" : `${age(span)} ago`;
}

function table(caption, heads, rows, counted) {
  const kind = (at) => at === counted && "number";
  return h("table", { class: "stacked" },
    h("caption", { class: "unseen" }, caption),
    h("thead", null, h("tr", null, heads.map((head, at) => h("th", { scope: "col", class: kind(at) }, head)))),
    h("tbody", null, rows.map((cells) => h("tr", null, cells.map((cell, at) => h("td", { "data-head": heads[at], class: kind(at) }, h("div", null, cell)))))));
}
