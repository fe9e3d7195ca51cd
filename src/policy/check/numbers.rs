//! Tables, marks and priorities: those that are given, and those that are counted up.

use super::super::Options;
use super::super::diagnostic::{Code, Diagnostic};
use super::super::raw::{Field, Given, Raw};
use super::super::reader::Reader;
use super::super::source::Span;
use crate::net::{Mark, RulePriority, TableId};

/// The last priority before that of the main table's rule, 32766
/// (`fib_default_rules_init` in the kernel's `net/ipv4/fib_rules.c`).
pub const LAST_PRIORITY: u32 = 32765;

/// The table of the first appliance.
const FIRST_TABLE: u32 = 103;

/// The routing table of each appliance.
pub(super) fn tables(raw: &Raw, reader: &mut Reader<'_>) -> Vec<Option<TableId>> {
    let mut taken: Vec<(u32, &Field<u32>, &str)> = Vec::new();
    let mut sound = Vec::with_capacity(raw.appliances.len());
    for appliance in &raw.appliances {
        let Some(field) = appliance.table.good() else {
            sound.push(None);
            continue;
        };
        let table = TableId(field.value);
        if table.is_reserved() {
            let name = match field.value {
                0 => "unspec",
                253 => "default",
                254 => "main",
                _ => "local",
            };
            let diagnostic = reader
                .diagnostic(
                    Code::TableReserved,
                    field.span,
                    field.key.as_str(),
                    format!("table {table} is the kernel's own `{name}`"),
                )
                .wanted("any number but 0, 253, 254 and 255")
                .hint("leave the key out to get 103, 104, … in order of appearance");
            reader.report(diagnostic);
            sound.push(None);
        } else if let Some((_, other, name)) =
            taken.iter().find(|(number, ..)| *number == field.value)
        {
            let diagnostic = reader
                .diagnostic(
                    Code::TableTwice,
                    field.span,
                    field.key.as_str(),
                    format!("table {table} is that of appliance `{name}`"),
                )
                .wanted("a table of its own")
                .related(reader.source, other.span, format!("table {table} here"));
            reader.report(diagnostic);
            sound.push(None);
        } else {
            taken.push((field.value, field, &appliance.typed));
            sound.push(Some(table));
        }
    }
    let mut free = (FIRST_TABLE..=u32::MAX).map(TableId).filter(|table| {
        !table.is_reserved() && taken.iter().all(|(number, ..)| *number != table.0)
    });
    raw.appliances
        .iter()
        .zip(sound)
        .map(|(appliance, table)| match appliance.table {
            Given::Missing => free.next(),
            _ => table,
        })
        .collect()
}

/// `number` in the bits of `mask`, lowest first: 1 under 0xff00 is 0x100. `None` if it has no room.
fn spread(number: u32, mask: u32) -> Option<u32> {
    let mut left = number;
    let mut spread = 0;
    for bit in (0..u32::BITS).map(|shift| 1_u32 << shift) {
        if mask & bit != 0 {
            if left & 1 == 1 {
                spread |= bit;
            }
            left >>= 1;
        }
    }
    (left == 0).then_some(spread)
}

/// The mark of each appliance.
pub(super) fn marks(raw: &Raw, reader: &mut Reader<'_>) -> Vec<Option<Mark>> {
    let mark_mask = match &raw.options.mark_mask {
        // Nothing can be said without the mask.
        Given::Bad => return vec![None; raw.appliances.len()],
        Given::Missing => Options::default().mark_mask,
        Given::Good(field) => field.value,
    };
    let mut taken: Vec<(Mark, &Field<u32>, &str)> = Vec::new();
    let mut explicit = Vec::with_capacity(raw.appliances.len());
    for appliance in &raw.appliances {
        let Some(field) = appliance.mark.good() else {
            explicit.push(None);
            continue;
        };
        let mark = Mark::new(field.value, mark_mask);
        let complaint = match mark {
            None => Some(mark_outside_mask(field, mark_mask, raw, reader)),
            Some(mark) => {
                taken
                    .iter()
                    .find(|(other, ..)| *other == mark)
                    .map(|(_, other, name)| {
                        reader
                            .diagnostic(
                                Code::MarkTwice,
                                field.span,
                                field.key.as_str(),
                                format!("mark {:#x} is that of appliance `{name}`", field.value),
                            )
                            .wanted("a mark of its own")
                            .related(reader.source, other.span, "the same mark")
                    })
            }
        };
        match (mark, complaint) {
            (Some(mark), None) => {
                taken.push((mark, field, &appliance.typed));
                explicit.push(Some(mark));
            }
            (_, complaint) => {
                if let Some(complaint) = complaint {
                    reader.report(complaint);
                }
                explicit.push(None);
            }
        }
    }
    let mut free = (1..=u32::MAX)
        .map_while(|number| Mark::new(spread(number, mark_mask)?, mark_mask))
        .filter(|mark| taken.iter().all(|(other, ..)| other != mark));
    let marks: Vec<_> = raw
        .appliances
        .iter()
        .zip(explicit)
        .map(|(appliance, mark)| match appliance.mark {
            Given::Missing => free.next(),
            _ => mark,
        })
        .collect();
    let full = raw
        .appliances
        .iter()
        .zip(&marks)
        .find(|(appliance, mark)| mark.is_none() && matches!(appliance.mark, Given::Missing));
    if let Some((appliance, _)) = full {
        let given = raw.options.mark_mask.good();
        let room = (1_u64 << mark_mask.count_ones()) - 1;
        let diagnostic = reader
            .diagnostic(
                Code::MaskTooSmall,
                given.map_or(appliance.span, |given| given.span),
                "options.mark_mask",
                format!(
                    "the mask {mark_mask:#x} has room for {room} {}, there are {} appliances",
                    if room == 1 { "mark" } else { "marks" },
                    raw.appliances.len()
                ),
            )
            .wanted("a mask with more bits");
        reader.report(diagnostic);
    }
    marks
}

fn mark_outside_mask(
    field: &Field<u32>,
    mark_mask: u32,
    raw: &Raw,
    reader: &Reader<'_>,
) -> Diagnostic {
    let mut diagnostic = reader
        .diagnostic(
            Code::MarkOutsideMask,
            field.span,
            field.key.as_str(),
            if field.value == 0 {
                "mark 0 is what packets without a mark have".to_owned()
            } else {
                format!(
                    "mark {:#x} has bits outside the mask {mark_mask:#x}",
                    field.value
                )
            },
        )
        .wanted(format!("bits of {mark_mask:#x}, at least one"));
    if let Some(given) = raw.options.mark_mask.good() {
        diagnostic = diagnostic.related(reader.source, given.span, "the mask");
    }
    match spread(field.value, mark_mask) {
        Some(better) if better != 0 => diagnostic.hint(format!(
            "`mark = {better:#x}`, or a `mark_mask` in `[options]` that has these bits"
        )),
        _ => diagnostic.hint("leave the key out to get one that fits"),
    }
}

/// The rule priority of each appliance.
pub(super) fn priorities(raw: &Raw, reader: &mut Reader<'_>) -> Vec<Option<RulePriority>> {
    let first = match &raw.options.rule_priority {
        Given::Bad => return vec![None; raw.appliances.len()],
        Given::Missing => Options::default().rule_priority.0,
        Given::Good(field) => field.value,
    };
    let priorities: Vec<_> = (0..raw.appliances.len())
        .map(|index| {
            u32::try_from(index)
                .ok()
                .and_then(|index| first.checked_add(index))
                .filter(|priority| *priority <= LAST_PRIORITY)
                .map(RulePriority)
        })
        .collect();
    if priorities.contains(&None) {
        let span = raw
            .options
            .rule_priority
            .good()
            .map(|field| field.span)
            .or(raw.options.span)
            .unwrap_or(Span::of_policy(0..0));
        let needed = raw.appliances.len();
        let diagnostic = reader
            .diagnostic(
                Code::PriorityTooHigh,
                span,
                "options.rule_priority",
                format!("{needed} rules from {first} on reach the main table's, which has 32766"),
            )
            .wanted(format!(
                "at most {}",
                LAST_PRIORITY.saturating_sub(u32::try_from(needed).unwrap_or(u32::MAX)) + 1
            ));
        reader.report(diagnostic);
    }
    priorities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_in_the_bits_of_the_mask() {
        assert_eq!(spread(1, 0xff), Some(1));
        assert_eq!(spread(3, 0xff00), Some(0x300));
        assert_eq!(spread(3, 0b1001), Some(0b1001));
        assert_eq!(spread(4, 0b1001), None);
        assert_eq!(spread(u32::MAX, u32::MAX), Some(u32::MAX));
    }
}
