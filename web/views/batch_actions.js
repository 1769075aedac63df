// What can be done with several batches at a time: which of them it fits, what it does in plain words, and the calls.
import { post } from "../lib/api.js";
import { count, isFinal, plural } from "../lib/format.js";
import { ask, toast } from "../lib/ui.js";
import { isPaused } from "./batch_list.js";

const PARALLEL = 4;

const takesLines = (batch) => ["validating", "in_progress"].includes(batch.status);
const sum = (batches, of) => batches.reduce((total, batch) => total + of(batch.request_counts), 0);
const left = ({ total, completed, failed }) => total - completed - failed;

export const ACTIONS = {
  pause: {
    text: "Pause",
    done: "paused",
    fits: (batch) => takesLines(batch) && !batch.paused_at,
    explain: () => "No more lines start; lines that are being answered are finished. The time until the deadline goes on.",
  },
  resume: {
    text: "Resume",
    done: "resumed",
    fits: isPaused,
    explain: (batches) => `The ${plural(sum(batches, left), "line")} left are started again.`,
  },
  retry: {
    text: "Retry failed lines",
    done: "retried",
    fits: (batch) => isFinal(batch) && batch.request_counts.failed > 0,
    explain: (batches) =>
      `New batches are made of the ${plural(sum(batches, (counts) => counts.failed), "line")} without an answer, one for each batch. The old ones stay as they are, and “merged” results join both.`,
  },
  cancel: {
    text: "Cancel",
    done: "cancelled",
    isDanger: true,
    fits: (batch) => !isFinal(batch) && batch.status !== "cancelling",
    explain: (batches) =>
      `Lines that have ended are kept and can be downloaded. ${count(sum(batches, left))} left do not run. A cancelled batch cannot go on, but its lines can be retried.`,
  },
};

// Ask, then call the action for each batch that it fits. Returns the batches as the API answers, or null if it was not done.
export async function actOn(name, selected) {
  const { text, done, isDanger, fits, explain } = ACTIONS[name];
  const batches = selected.filter(fits);
  const what = `${text.split(" ")[0]} ${plural(batches.length, "batch", "batches")}`;
  const others = selected.length - batches.length;
  const rest = others ? ` ${plural(others, "other selected batch", "other selected batches")} cannot be ${done} and ${others === 1 ? "stays" : "stay"} as ${others === 1 ? "it is" : "they are"}.` : "";
  if (!(await ask({ title: `${what}?`, text: explain(batches) + rest, action: what, isDanger }))) return null;
  const [answers, errors, waiting] = [[], [], [...batches]];
  const work = async () => {
    for (let batch = waiting.shift(); batch; batch = waiting.shift()) {
      await post(`/v1/batches/${batch.id}/${name}`).then((answer) => answers.push(answer), (error) => errors.push(error));
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, work));
  const wasDone = `${plural(answers.length, "batch", "batches")} ${done}.`;
  if (errors.length) toast(`${wasDone} ${count(errors.length)} could not be ${done}: ${errors[0].message}`, "bad");
  else toast(wasDone);
  return answers;
}
