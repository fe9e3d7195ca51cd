//! A policy as read: every value checked by itself, each with its place; nothing yet put together.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::{self, Gathered, IfName, IfPattern, MacAddr, PortRange};

use super::source::Span;
use super::{Name, Options};

/// A value with where it stands and what it is called.
#[derive(Debug, Clone)]
pub struct Field<T> {
    pub value: T,
    pub span: Span,
    pub key: String,
}

/// What was found for a key.
#[derive(Debug, Clone)]
pub enum Given<T> {
    /// Nothing.
    Missing,
    /// Something wrong, which has been reported.
    Bad,
    /// A sound value.
    Good(Field<T>),
}

impl<T> Given<T> {
    pub fn good(&self) -> Option<&Field<T>> {
        match self {
            Self::Good(field) => Some(field),
            _ => None,
        }
    }
}

/// What was found for a key that takes a list.
#[derive(Debug, Clone)]
pub struct Many<T> {
    /// The sound ones.
    pub items: Vec<Field<T>>,
    /// Whether all of them were sound; if not, nothing may be concluded from
    /// what is *not* among them.
    pub complete: bool,
    /// Where the whole value stands, or the table where it is missing.
    pub span: Span,
    /// What it is called.
    pub key: String,
}

/// One item of a list of networks.
#[derive(Debug, Clone)]
pub enum Networks {
    /// A network.
    One(IpNet),
    /// The networks of a list file, and the file's number in [`Span::file`].
    File(net::Networks, usize),
}

impl Many<Networks> {
    /// All of them, merged.
    pub fn merged(&self) -> net::Networks {
        // A list file alone is merged already.
        if let [only] = self.items.as_slice() {
            return only.value.merged();
        }
        let mut gathered = Gathered::default();
        for field in &self.items {
            match &field.value {
                Networks::One(network) => gathered.add(*network),
                Networks::File(networks, _) => gathered.add_all(networks),
            }
        }
        gathered.merged()
    }
}

impl Networks {
    pub fn merged(&self) -> net::Networks {
        match self {
            Self::One(network) => net::Networks::merged([*network]),
            Self::File(networks, _) => networks.clone(),
        }
    }
}

/// `[appliance.NAME]` as read.
#[derive(Debug)]
pub struct RawAppliance {
    pub typed: String,
    pub name: Option<Name>,
    pub key: String,
    pub span: Span,
    pub addresses: Many<IpAddr>,
    pub interface: Given<IfName>,
    pub macs: Many<MacAddr>,
    pub table: Given<u32>,
    pub mark: Given<u32>,
}

/// `[[redirect]]` as read.
#[derive(Debug)]
pub struct RawRedirect {
    pub number: usize,
    pub key: String,
    pub span: Span,
    pub name: Given<Name>,
    pub appliance: Given<String>,
    pub clients: Many<IfPattern>,
    pub server_interfaces: Many<IfPattern>,
    pub servers: Many<Networks>,
    pub ports: Many<PortRange>,
    pub snat: Given<bool>,
    pub except_clients: Many<Networks>,
    pub except_servers: Many<Networks>,
}

impl RawRedirect {
    /// As messages call it.
    pub fn called(&self) -> String {
        match self.name.good() {
            Some(name) => format!("redirect `{}`", name.value),
            None => format!("redirect {}", self.number),
        }
    }
}

/// `[options]` as read.
#[derive(Debug)]
pub struct RawOptions {
    pub span: Option<Span>,
    pub mark_mask: Given<u32>,
    pub rule_priority: Given<u32>,
    pub others: Options,
}

/// The whole file as read.
#[derive(Debug)]
pub struct Raw {
    pub appliances: Vec<RawAppliance>,
    pub redirects: Vec<RawRedirect>,
    pub options: RawOptions,
    /// Whether all appliances were tables.
    pub appliances_complete: bool,
    /// Whether all redirects were.
    pub redirects_complete: bool,
}
