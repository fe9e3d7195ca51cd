//! Medians, ratios, and what was to be reached: two tables in Markdown.

use std::collections::BTreeMap;

use crate::sample::Sample;
use crate::{Act, Backend, Subject};

/// All that was measured.
#[derive(Debug, Default)]
pub struct Report {
    /// How many networks, how many intervals they are, how often each was measured.
    sizes: Vec<(usize, usize, usize)>,
    samples: BTreeMap<(Act, Subject, usize), Vec<Sample>>,
    /// The most transactions that a change took.
    transactions: BTreeMap<usize, u32>,
}

/// What is to be reached: one figure at most so many times the other. Without `most` it is there to
/// compare with: what bounds the others.
struct Target {
    what: &'static str,
    count: usize,
    is: (Figure, Act, Subject),
    most: Option<f64>,
    times: (Figure, Act, Subject),
}

#[derive(Debug, Clone, Copy)]
enum Figure {
    Time,
    Memory,
}

const OURS: Subject = Subject::Redirect(Backend::Nftables);

impl Report {
    /// From here on, so many networks are measured.
    pub fn size(&mut self, count: usize, merged: usize, rounds: usize) {
        self.sizes.push((count, merged, rounds));
    }

    /// What `subject` took.
    pub fn add(&mut self, subject: Subject, act: Act, count: usize, sample: Sample) {
        let samples = self.samples.entry((act, subject, count)).or_default();
        samples.push(sample);
    }

    /// In how many transactions a change came.
    pub fn transactions(&mut self, count: usize, transactions: u32) {
        let most = self.transactions.entry(count).or_default();
        *most = transactions.max(*most);
    }

    /// The median of one figure, in milliseconds or MiB.
    fn median(&self, figure: Figure, act: Act, subject: Subject, count: usize) -> Option<f64> {
        let samples = self.samples.get(&(act, subject, count))?;
        let mut values: Vec<f64> = samples
            .iter()
            .map(|sample| match figure {
                Figure::Time => sample.time.as_secs_f64() * 1e3,
                // No figure in KiB comes near 2^52.
                #[expect(clippy::cast_precision_loss, reason = "see above")]
                Figure::Memory => sample.memory as f64 / 1024.0,
            })
            .collect();
        values.sort_by(f64::total_cmp);
        let middle = values.get(values.len() / 2)?;
        let before = values.get((values.len() - 1) / 2)?;
        Some(f64::midpoint(*before, *middle))
    }

    /// Prints both tables.
    #[expect(clippy::print_stdout, reason = "this is what was asked for")]
    pub fn print(&self) {
        println!("{}\n", self.figures().join("\n"));
        println!("{}", self.targets().join("\n"));
    }

    fn figures(&self) -> Vec<String> {
        let row = |head: &str, cells: Vec<String>| format!("| {head} | {} |", cells.join(" | "));
        let of_sizes = |cell: &dyn Fn(&(usize, usize, usize)) -> String| -> Vec<String> {
            self.sizes.iter().map(cell).collect()
        };
        let mut lines = vec![
            row("networks", of_sizes(&|(count, ..)| thousands(*count))),
            row("---", of_sizes(&|_| "---:".to_owned())),
            row(
                "intervals of them",
                of_sizes(&|(_, merged, _)| thousands(*merged)),
            ),
            row(
                "measured so often",
                of_sizes(&|(.., rounds)| rounds.to_string()),
            ),
        ];
        let kinds = [
            (Figure::Time, Act::Apply, "apply, ms"),
            (
                Figure::Time,
                Act::Again,
                "apply again, nothing to change, ms",
            ),
            (Figure::Time, Act::Change, "three networks changed, ms"),
            (Figure::Time, Act::Status, "status, ms"),
            (Figure::Time, Act::Diff, "diff, ms"),
            (Figure::Time, Act::Teardown, "teardown, ms"),
            (Figure::Memory, Act::Apply, "peak memory of apply, MiB"),
        ];
        for (figure, act, head) in kinds {
            for subject in Subject::ALL {
                let cells = of_sizes(&|(count, ..)| {
                    self.median(figure, act, subject, *count)
                        .map_or_else(|| "–".to_owned(), digits)
                });
                if cells.iter().any(|cell| cell != "–") {
                    lines.push(row(&format!("{head}: {subject}"), cells));
                }
            }
        }
        lines
    }

    fn targets(&self) -> Vec<String> {
        let mut lines = vec![
            "| to reach, nftables | networks | measured | |".to_owned(),
            "|---|---:|---:|---|".to_owned(),
        ];
        let mut line = |what: &str, count: usize, found: String, is_met: Option<bool>| {
            let verdict = match is_met {
                Some(true) => "met",
                Some(false) => "**not met**",
                None => "to compare with",
            };
            lines.push(format!(
                "| {what} | {} | {found} | {verdict} |",
                thousands(count)
            ));
        };
        for target in targets() {
            let value = |(figure, act, subject)| self.median(figure, act, subject, target.count);
            if let (Some(is), Some(other)) = (value(target.is), value(target.times)) {
                let ratio = is / other;
                line(
                    target.what,
                    target.count,
                    format!("{ratio:.2}"),
                    target.most.map(|most| ratio <= most),
                );
            }
        }
        for (count, transactions) in &self.transactions {
            let what = "three networks changed come in one transaction";
            line(
                what,
                *count,
                transactions.to_string(),
                Some(*transactions == 1),
            );
        }
        lines
    }
}

/// What the project set out to reach.
fn targets() -> Vec<Target> {
    use Act::{Again, Apply, Change, Diff, Status, Teardown};
    use Figure::{Memory, Time};
    use Subject::{Bare, ByHand, Journalled, NftFile};
    let third = Some(1.0 / 3.0);
    let row = |what, counts: &'static [usize], is, most, times| {
        counts.iter().map(move |&count| Target {
            what,
            count,
            is,
            most,
            times,
        })
    };
    let apply = (Time, Apply, OURS);
    let nft = (Time, Apply, NftFile);
    let bare = (Time, Apply, Bare);
    let journalled = (Time, Apply, Journalled);
    let dump = (Time, Status, Bare);
    let large = &[10_000, 100_000];
    let huge = &[100_000];
    [
        row(
            "apply ÷ the seven commands ≤ 1/3",
            &[1],
            apply,
            third,
            (Time, Apply, ByHand),
        ),
        row(
            "the bare batch, and the least that a synced journal takes ÷ the seven commands",
            &[1],
            journalled,
            None,
            (Time, Apply, ByHand),
        ),
        row(
            "apply ÷ the bare batch, and the least that a synced journal takes",
            &[1, 10_000],
            apply,
            None,
            journalled,
        ),
        row("apply ÷ `nft -f` and `ip` ≤ 1/3", large, apply, third, nft),
        row(
            "apply ÷ the bare batch ≤ 1.25",
            large,
            apply,
            Some(1.25),
            bare,
        ),
        row(
            "second apply ÷ first ≤ 1/3",
            &[10_000],
            (Time, Again, OURS),
            third,
            apply,
        ),
        row(
            "three networks changed ÷ apply ≤ 1/10",
            huge,
            (Time, Change, OURS),
            Some(0.1),
            apply,
        ),
        row(
            "status ÷ a bare dump ≤ 3",
            huge,
            (Time, Status, OURS),
            Some(3.0),
            dump,
        ),
        row(
            "diff ÷ a bare dump ≤ 3",
            huge,
            (Time, Diff, OURS),
            Some(3.0),
            dump,
        ),
        row(
            "teardown ÷ `nft delete table` and `ip` ≤ 1",
            &[1, 1_000, 10_000, 100_000],
            (Time, Teardown, OURS),
            Some(1.0),
            (Time, Teardown, NftFile),
        ),
        row(
            "peak memory of apply ÷ that of `nft -f` ≤ 1",
            huge,
            (Memory, Apply, OURS),
            Some(1.0),
            (Memory, Apply, NftFile),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => grouped(&format!("{value:.0}")),
    }
}

fn thousands(number: usize) -> String {
    grouped(&number.to_string())
}

/// `100,000`.
fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
