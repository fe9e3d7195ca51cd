//! The engine on a router in memory: a fault at every step, and a death at every step,
//! leave the router as it was.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what does not hold fails the test, which says how much it tried"
)]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use redirect::engine::{Engine, Goal, policy_in_force};
use redirect::failure::{Exit, Failure};
use redirect::journal::{BootId, Condition, Digest, Draining, Journal, Kind, Location, Outcome};
use redirect::kernel::fake::FakeKernel;
use redirect::kernel::{Kernel, KernelError, Wish};
use redirect::net::{
    Action, Family, IfPattern, Route, RouteKind, RouteProtocol, RoutingRule, RulePriority,
    RuleSelectors, TableId,
};
use redirect::observation::{Address, Availability, Observed};
use redirect::plan::planner::Stage;
use redirect::plan::{Change, Plan};
use redirect::policy::{self, Policy, Source};
use redirect::rules::{Connection, Model, Packet};

/// When a run dies, counted in changes.
#[derive(Debug, Clone, Copy)]
enum Death {
    Before(usize),
    After(usize),
}

/// What others do before each look at the router, counted from 0.
type Others = dyn Fn(usize, &mut Observed);

/// A router whose user may be killed at any change.
#[derive(Clone)]
struct Mortal {
    router: Rc<RefCell<FakeKernel>>,
    death: Rc<RefCell<Option<Death>>>,
    made: Rc<RefCell<usize>>,
    looks: Rc<RefCell<usize>>,
    others: Rc<Others>,
}

/// What a panic carries that stands for `kill -9`.
struct Killed;

impl Mortal {
    fn new(observed: Observed) -> Self {
        Self {
            router: Rc::new(RefCell::new(FakeKernel::new(observed))),
            death: Rc::default(),
            made: Rc::default(),
            looks: Rc::default(),
            others: Rc::new(|_, _| ()),
        }
    }

    /// From now on others do this.
    fn meanwhile(&mut self, others: impl Fn(usize, &mut Observed) + 'static) {
        *self.looks.borrow_mut() = 0;
        self.others = Rc::new(others);
    }

    fn die(&self, death: Option<Death>) {
        *self.death.borrow_mut() = death;
        *self.made.borrow_mut() = 0;
    }

    fn observed(&self) -> Observed {
        self.router.borrow().observed.clone()
    }
}

impl Kernel for Mortal {
    fn observe(&mut self, wish: &Wish<'_>) -> Result<Observed, KernelError> {
        let look = self.looks.replace_with(|look| *look + 1);
        (self.others)(look, &mut self.router.borrow_mut().observed);
        self.router.borrow_mut().observe(wish)
    }

    fn rehearse(&mut self, plan: &Plan) -> Result<(), KernelError> {
        self.router.borrow_mut().rehearse(plan)
    }

    fn perform(&mut self, change: &Change) -> Result<(), KernelError> {
        let at = *self.made.borrow();
        *self.made.borrow_mut() += 1;
        let death = *self.death.borrow();
        if matches!(death, Some(Death::Before(step)) if step == at) {
            std::panic::resume_unwind(Box::new(Killed));
        }
        let made = self.router.borrow_mut().perform(change);
        if matches!(death, Some(Death::After(step)) if step == at) {
            std::panic::resume_unwind(Box::new(Killed));
        }
        made
    }
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A router, its state directory, and what may be applied to it.
struct Bench {
    kernel: Mortal,
    location: Location,
    stage: Stage,
    _scratch: Scratch,
}

impl Bench {
    fn new(name: &str, observed: Observed) -> Self {
        // In memory where there is such a place: these tests sync a thousand times.
        let shm = PathBuf::from("/dev/shm");
        let parent = if shm.is_dir() {
            shm
        } else {
            std::env::temp_dir()
        };
        let directory = parent.join(format!("redirect-engine-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        Self {
            kernel: Mortal::new(observed),
            location: Location {
                directory: directory.clone(),
                boot: BootId("boot".to_owned()),
            },
            stage: Stage::Complete,
            _scratch: Scratch(directory),
        }
    }

    /// Applies `wanted`, or tears down where it is none; returns how many changes that took.
    fn run(&mut self, wanted: Option<&(Policy, Source)>) -> Result<usize, Failure> {
        let nothing = Policy::default();
        let goal = Goal {
            kind: if wanted.is_some() {
                Kind::Apply
            } else {
                Kind::Teardown
            },
            policy: wanted.map_or(&nothing, |(policy, _)| policy),
            source: wanted.map(|(_, source)| source),
            stage: self.stage,
            draining: &Draining::default(),
        };
        let mut kernel = self.kernel.clone();
        let mut engine = Engine::open(&mut kernel, &self.location, Duration::ZERO)?;
        let observed = engine.observe(&goal)?;
        let planned = engine.plan(&goal, &observed);
        assert!(planned.refusals.is_empty(), "{:?}", planned.refusals);
        Ok(engine.perform(&goal, &planned.plan)?.changes.len())
    }

    /// Any command's beginning: what was left is taken back.
    fn recover(&mut self) -> Result<(), Failure> {
        let mut kernel = self.kernel.clone();
        Engine::open(&mut kernel, &self.location, Duration::ZERO).map(drop)
    }

    fn journal(&self) -> Journal {
        Journal::read(&self.location).unwrap()
    }

    fn is_settled(&self) -> bool {
        self.journal().condition(Duration::ZERO, false) == Condition::Settled
    }
}

fn killed<T>(work: impl FnOnce() -> Result<T, Failure>) -> bool {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(_)) => false,
        Ok(Err(failure)) => panic!("{failure}"),
        Err(payload) if payload.is::<Killed>() => true,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

fn example(name: &str, change: impl Fn(&str) -> String) -> (Policy, Source) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    let mut source = Source::load(&path).unwrap();
    source.text = change(&source.text);
    let reading = policy::read(&source).unwrap_or_else(|errors| panic!("{name}: {errors}"));
    (reading.policy, source)
}

/// A router on which others are at work, too.
fn router(policies: &[&Policy]) -> Observed {
    let mut observed = Observed::clean(policies.first().unwrap());
    for policy in policies {
        for link in Observed::clean(policy).links {
            if observed.link(&link.name).is_none() {
                observed.links.push(link);
            }
        }
    }
    observed.nftables_availability = Availability::Available;
    observed.rules.push(RoutingRule {
        family: Family::V4,
        priority: RulePriority(103),
        mark: None,
        selectors: RuleSelectors {
            source: Some("192.0.2.0/24".parse().unwrap()),
            ..RuleSelectors::default()
        },
        action: Action::Lookup(TableId(201)),
        protocol: RouteProtocol(3),
    });
    observed
        .rules
        .sort_by_key(|rule| (rule.family, rule.priority));
    observed
}

/// First apply, change of policy, teardown.
type Story<'a> = [(Option<&'a (Policy, Source)>, Option<&'a (Policy, Source)>); 3];

fn stories<'a>(a: &'a (Policy, Source), b: &'a (Policy, Source)) -> Story<'a> {
    [(None, Some(a)), (Some(a), Some(b)), (Some(b), None)]
}

/// A policy with the text that it was read from.
type Written = (Policy, Source);

/// Policies, and what they are changed to.
fn pairs() -> Vec<(String, Written, Written)> {
    let same = |text: &str| text.to_owned();
    let other_port = |text: &str| text.replace("3389", "3390").replace("= 22", "= 23");
    ["rdp-snat.toml", "ipv6.toml", "two-appliances.toml"]
        .map(|name| {
            (
                name.to_owned(),
                example(name, same),
                example(name, other_port),
            )
        })
        .into()
}

#[test]
fn what_is_lacking_is_found_before_anything_is_changed_and_hinders_no_teardown() {
    let (_, a, b) = pairs().into_iter().next().unwrap();
    let mut bench = Bench::new("lacking", router(&[&a.0, &b.0]));
    bench.run(Some(&a)).unwrap();
    let (before, known) = (bench.kernel.observed(), bench.journal().history().len());
    bench.kernel.router.borrow_mut().lacks = Some("it has no such match");
    let failure = bench.run(Some(&b)).unwrap_err();
    assert_eq!(failure.exit, Exit::Lacking);
    assert!(bench.kernel.observed() == before);
    assert_eq!(bench.journal().history().len(), known, "nothing was begun");
    bench.run(None).unwrap();
}

#[test]
fn a_fault_at_every_step_leaves_the_router_as_it_was() {
    let mut faults = 0;
    for (name, a, b) in &pairs() {
        let mut bench = Bench::new(&format!("fault-{name}"), router(&[&a.0, &b.0]));
        let pristine = bench.kernel.observed();
        for (from, to) in stories(a, b) {
            let before = bench.kernel.observed();
            for step in 0.. {
                bench.kernel.router.borrow_mut().fail_at(step);
                let done = bench.run(to);
                bench.kernel.router.borrow_mut().fail_at = None;
                if let Ok(steps) = done {
                    assert_eq!(step, steps, "every step was tried");
                    break;
                }
                faults += 1;
                assert!(bench.kernel.observed() == before, "{name}, step {step}");
                assert!(bench.is_settled());
                let journal = bench.journal();
                let outcome = &journal.history().last().unwrap().outcome;
                assert!(
                    matches!(outcome, Some(Outcome::Undone { .. })),
                    "{outcome:?}"
                );
                assert_eq!(journal.in_force().policy.is_some(), from.is_some());
            }
        }
        assert!(
            bench.kernel.observed() == pristine,
            "{name}: traces are left"
        );
    }
    println!("{faults} faults tried, 0 traces left");
}

#[test]
fn a_death_at_every_step_leaves_the_router_as_it_was() {
    let mut deaths = 0;
    for (name, a, b) in &pairs() {
        let mut bench = Bench::new(&format!("death-{name}"), router(&[&a.0, &b.0]));
        let pristine = bench.kernel.observed();
        for (_, to) in stories(a, b) {
            let before = bench.kernel.observed();
            'steps: for step in 0.. {
                for death in [Death::Before(step), Death::After(step)] {
                    // The recovery itself dies at every step, and is tried again.
                    for second in 0.. {
                        bench.kernel.die(Some(death));
                        if !killed(|| bench.run(to)) {
                            break 'steps;
                        }
                        deaths += 1;
                        assert!(!bench.is_settled());
                        bench.kernel.die(Some(Death::After(second)));
                        let again = killed(|| bench.recover());
                        deaths += usize::from(again);
                        bench.kernel.die(None);
                        bench
                            .recover()
                            .unwrap_or_else(|failure| panic!("{failure}"));
                        assert!(
                            bench.kernel.observed() == before,
                            "{name}, {death:?}, then after {second}"
                        );
                        assert!(bench.is_settled());
                        if !again {
                            break;
                        }
                    }
                }
            }
            bench.kernel.die(None);
        }
        assert!(
            bench.kernel.observed() == pristine,
            "{name}: traces are left"
        );
    }
    println!("{deaths} deaths tried, 0 traces left");
}

#[test]
fn where_the_record_is_damaged_the_way_back_is_planned_anew() {
    let mut deaths = 0;
    for (name, a, b) in &pairs() {
        let mut bench = Bench::new(&format!("damaged-{name}"), router(&[&a.0, &b.0]));
        for (_, to) in stories(a, b) {
            let before = bench.kernel.observed();
            for step in 0.. {
                bench.kernel.die(Some(Death::After(step)));
                if !killed(|| bench.run(to)) {
                    break;
                }
                deaths += 1;
                bench.kernel.die(None);
                let id = bench.journal().last();
                std::fs::remove_file(bench.location.directory.join(format!("plan-{id}.json")))
                    .unwrap();
                bench
                    .recover()
                    .unwrap_or_else(|failure| panic!("{failure}"));
                assert!(bench.kernel.observed() == before, "{name}, after {step}");
            }
            bench.kernel.die(None);
        }
    }
    println!("{deaths} deaths tried without a record, 0 traces left");
}

#[test]
fn a_drain_lets_open_sessions_end_where_they_began() {
    let (policy, source) = example("rdp-snat.toml", str::to_owned);
    let appliance = policy.appliances.first().unwrap();
    let redirect = policy.redirects.first().unwrap();
    let drained = policy
        .clone()
        .draining(std::slice::from_ref(&appliance.name));
    let IfPattern::Exact(input) = redirect.client_interfaces.first().unwrap() else {
        panic!("an exact name in the example");
    };
    let packet = |connection| Packet {
        input: input.clone(),
        mac: None,
        source: "10.10.0.7".parse().unwrap(),
        destination: redirect.servers.sample(Family::V4).unwrap(),
        ports: Some((40000, redirect.ports.iter().next().unwrap().first)),
        flags: Packet::ACK,
        connection,
        mark: 0,
    };
    let mark = appliance.mark;
    for (policy, connection, redirected) in [
        (&policy, Connection::New(0), true),
        (&drained, Connection::New(0), false),
        (&drained, Connection::Known(0), false),
        (&drained, Connection::Known(mark.value), true),
    ] {
        let marked = Model::new(policy).prerouting(&packet(connection));
        assert_eq!(mark.is_borne_by(marked.mark), redirected, "{connection:?}");
    }

    let mut bench = Bench::new("drain", router(&[&policy]));
    let pristine = bench.kernel.observed();
    let wanted = (policy, source);
    bench.run(Some(&wanted)).unwrap();
    let applied = bench.kernel.observed();
    let draining = Draining {
        appliances: vec![wanted.0.appliances.first().unwrap().name.clone()],
        ..Draining::default()
    };
    let goal = Goal {
        kind: Kind::Drain,
        policy: &drained,
        source: Some(&wanted.1),
        stage: Stage::Complete,
        draining: &draining,
    };
    let mut kernel = bench.kernel.clone();
    let mut engine = Engine::open(&mut kernel, &bench.location, Duration::ZERO).unwrap();
    let observed = engine.observe(&goal).unwrap();
    let planned = engine.plan(&goal, &observed);
    assert_eq!(planned.plan.changes.len(), 1, "packet rules alone");
    engine.perform(&goal, &planned.plan).unwrap();
    drop(engine);
    // That is what is in force now: a repair would leave it so.
    assert_eq!(policy_in_force(&bench.journal()).unwrap(), drained);
    // A rollback, or an apply of the same policy, ends it; so does a teardown.
    let digest = bench.journal().policy_before().unwrap().cloned();
    assert_eq!(digest, Some(Digest::of(&wanted.1)));
    bench.run(Some(&wanted)).unwrap();
    assert!(bench.kernel.observed() == applied);
    assert_eq!(policy_in_force(&bench.journal()).unwrap(), wanted.0);
    bench.run(None).unwrap();
    assert!(bench.kernel.observed() == pristine);
}

/// A router that starts: the appliance's interface gets its address only after we looked.
struct Starting {
    bench: Bench,
    wanted: Written,
    addresses: Vec<Address>,
}

impl Starting {
    fn new(name: &str) -> Self {
        let wanted = example("rdp-snat.toml", str::to_owned);
        let mut observed = router(&[&wanted.0]);
        let addresses = std::mem::take(&mut observed.addresses);
        let mut bench = Bench::new(name, observed);
        bench.stage = Stage::Possible;
        Self {
            bench,
            wanted,
            addresses,
        }
    }

    fn run(&mut self) -> Result<usize, Failure> {
        self.bench.run(Some(&self.wanted))
    }

    /// The address comes between the first look and the second; then others do `more`.
    fn meanwhile(&mut self, more: impl Fn(usize, &mut Observed) + 'static) {
        let addresses = self.addresses.clone();
        self.bench.kernel.meanwhile(move |look, observed| {
            if look > 0 {
                observed.addresses.clone_from(&addresses);
            }
            more(look, observed);
        });
    }

    fn routes(&self) -> usize {
        let observed = self.bench.kernel.observed();
        let ours = |route: &&Route| {
            route.protocol == RouteProtocol::OURS && route.kind == RouteKind::Unicast
        };
        observed.routes.iter().filter(ours).count()
    }
}

#[test]
fn what_comes_up_between_two_looks_is_part_of_the_transaction() {
    let mut start = Starting::new("starting");
    let planned = start.run().unwrap();
    assert_eq!(start.routes(), 0, "nothing is on-link yet");
    start.bench.run(None).unwrap();
    let pristine = start.bench.kernel.observed();

    start.meanwhile(|_, _| ());
    assert_eq!(start.run().unwrap(), planned + 1);
    assert_eq!(start.routes(), 1);
    let journal = start.bench.journal();
    let entry = journal.history().last().unwrap();
    assert_eq!(entry.outcome, Some(Outcome::Done));
    assert_eq!(entry.changes.len(), planned + 1);
    start.bench.kernel.meanwhile(|_, _| ());
    start.bench.run(None).unwrap();
    let mut started = start.bench.kernel.observed();
    assert_eq!(started.addresses, start.addresses);

    // A death, or a fault, at any of these changes takes all of them back.
    started.addresses.clear();
    assert!(started == pristine);
    for step in 0..=planned {
        for is_death in [true, false] {
            start.bench.kernel.router.borrow_mut().observed = pristine.clone();
            start.meanwhile(|_, _| ());
            if is_death {
                start.bench.kernel.die(Some(Death::After(step)));
                assert!(killed(|| start.run()));
                assert!(!start.bench.is_settled());
                start.bench.kernel.die(None);
                start.bench.recover().unwrap();
            } else {
                start.bench.kernel.router.borrow_mut().fail_at(step);
                start.run().unwrap_err();
                start.bench.kernel.router.borrow_mut().fail_at = None;
            }
            let mut found = start.bench.kernel.observed();
            found.addresses.clear();
            assert!(found == pristine, "step {step}, death: {is_death}");
            assert!(start.bench.is_settled());
        }
    }
}

#[test]
fn what_comes_and_goes_ends_the_run_which_takes_everything_back() {
    // Each time that we have made the route, the link loses it.
    let mut start = Starting::new("flapping");
    let pristine = start.bench.kernel.observed();
    start.meanwhile(|_, observed| {
        observed.routes.retain(|route| {
            route.protocol != RouteProtocol::OURS || route.kind != RouteKind::Unicast
        });
    });
    let failure = start.run().unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    let said = failure.details.join("\n");
    assert!(
        said.contains("did not take: + route -4 default via"),
        "{said}"
    );
    assert!(said.contains("everything was taken back"), "{said}");
    let mut found = start.bench.kernel.observed();
    found.addresses.clear();
    assert!(found == pristine);
    assert!(start.bench.is_settled());

    // Each time that we look, others have put another rule there that bears our mark.
    let mut start = Starting::new("intruding");
    start.meanwhile(|look, observed| {
        let mut rule = observed.rules.last().unwrap().clone();
        rule.priority = RulePriority(20_000 + u32::try_from(look).unwrap());
        rule.protocol = RouteProtocol::OURS;
        observed.rules.push(rule);
        observed
            .rules
            .sort_by_key(|rule| (rule.family, rule.priority));
    });
    let failure = start.run().unwrap_err();
    let said = failure.details.join("\n");
    assert!(said.contains("others have changed the router"), "{said}");
    assert!(said.contains("everything was taken back"), "{said}");
    assert!(start.bench.is_settled());
    assert!(start.bench.kernel.observed().nftables.is_none());
}
