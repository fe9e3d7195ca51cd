//! Which networks: random ones, the same in every run of every build.

use std::fmt;
use std::net::Ipv4Addr;

/// How many networks a change takes out, and how many others it puts in.
const FEW: usize = 3;

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: u32,
    length: u32,
}

impl Network {
    fn new(address: u32, length: u32) -> Self {
        let first = address & (u32::MAX << (32 - length));
        Self { first, length }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.length)
    }
}

/// Numbers that look random (xorshift64*; Vigna, "An experimental exploration of Marsaglia's
/// xorshift generators, scrambled").
struct Random(u64);

impl Random {
    /// The next, below `limit`.
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        // The upper half of a product is below either factor.
        u32::try_from((high * u64::from(limit)) >> 32).unwrap_or(0)
    }
}

/// `count` networks from 20.0.0.0 to 99.255.255.255, /20 to /32. Of ten, one lies within an
/// earlier one and one beside it. The last few are apart from all others: those that
/// [`with_a_few_others`] takes out.
pub fn random(count: usize) -> Vec<Network> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let apart = FEW.min(count);
    let mut all: Vec<Network> = Vec::with_capacity(count);
    while all.len() < count - apart {
        let sort = random.below(10);
        let earlier = u32::try_from(all.len()).map_or(0, |length| random.below(length));
        let new = match (sort, all.get(earlier as usize)) {
            (0, Some(around)) if around.length < 32 => {
                let length = around.length + 1 + random.below(32 - around.length);
                let inner = u32::MAX >> around.length;
                Network::new(around.first | (random.below(u32::MAX) & inner), length)
            }
            // The other half of the network that is one bit shorter.
            (1, Some(beside)) => {
                Network::new(beside.first ^ (1 << (32 - beside.length)), beside.length)
            }
            _ => {
                let address = ((20 + random.below(80)) << 24) | random.below(1 << 24);
                // As on routers, small ones are more frequent.
                let length = 20 + random.below(13).max(random.below(13));
                Network::new(address, length)
            }
        };
        all.push(new);
    }
    all.extend(apart_from_all(120, apart));
    all
}

/// The same with a few networks changed for others.
pub fn with_a_few_others(networks: &[Network]) -> Vec<Network> {
    let kept = networks.len().saturating_sub(FEW);
    let kept = networks.iter().take(kept).copied();
    kept.chain(apart_from_all(121, FEW)).collect()
}

/// `count` networks within `octet`.0.0.0/8, none beside another.
fn apart_from_all(octet: u32, count: usize) -> impl Iterator<Item = Network> {
    (0..256)
        .map(move |at| Network::new((octet << 24) | (at << 16), 24))
        .take(count)
}
