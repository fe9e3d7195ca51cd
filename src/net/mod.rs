//! The words of the field, as types: what is read from the policy or from the
//! kernel is checked once, here, and cannot be mistaken afterwards.

mod interface;
mod mark;
mod packed;
mod ranges;
mod route;

pub use interface::{IfName, IfNameError, IfPattern, MacAddr};
pub use mark::Mark;
pub use ranges::{Gathered, Networks, PortRange, Ports, Range, Ranges, Step};
pub use route::{
    Action, Family, Route, RouteKind, RouteProtocol, RoutingRule, RulePriority, RuleSelectors,
    TableId,
};
