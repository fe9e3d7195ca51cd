//! `redirect diff`: what apply would change.

use super::{Typed, counted, offline, plan_unlocked, read_policy, show_warnings};
use crate::cli::Diff;
use crate::engine::Goal;
use crate::failure::{Exit, Failure};
use crate::journal::{Draining, Kind};
use crate::plan::planner::Stage;
use crate::render::{difference, json};
use crate::terminal::Terminal;

pub(super) fn run(args: &Diff, terminal: &Terminal) -> Result<Exit, Failure> {
    let typed = read_policy(&args.policy.policy, terminal)?;
    let Typed { policy, source, .. } = &typed;
    let goal = Goal {
        kind: Kind::Apply,
        policy,
        source: Some(source),
        stage: Stage::Complete,
        draining: &Draining::default(),
    };
    let planned = if args.offline.offline {
        offline(&goal)
    } else {
        plan_unlocked(&goal, false)?
    };
    show_warnings(&planned, terminal);
    let differences = difference::differences(&planned.plan);
    // Machines read one object; refusals come as that of the failure.
    if args.json && planned.refusals.is_empty() {
        terminal.data(&json::differences(&differences))?;
    } else if !args.json {
        terminal.data(&difference::text(&differences, terminal.colour_out()))?;
    }
    if !planned.refusals.is_empty() {
        return Err(typed.refused(&planned.refusals, terminal));
    }
    if planned.plan.is_empty() {
        terminal.note("no difference: the router matches the policy");
        return Ok(Exit::Done);
    }
    terminal.note(&format!(
        "{} pending; `redirect apply` makes them",
        counted(differences.len(), "change", "changes")
    ));
    Ok(Exit::Pending)
}
