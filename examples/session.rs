//! The lab's sessions: a small TCP service, and the client that uses it.
//!
//! `examples/lab` starts the service in the server's namespace; tests and people
//! run the client in the client's or the bystander's:
//!
//! ```text
//! session serve PORT...                     the service; never ends by itself
//! session ask ADDRESS PORT [MILLISECONDS]   one session: which way did it go?
//! session fetch ADDRESS PORT BYTES          so many bytes from the server, each checked
//! session push ADDRESS PORT BYTES           so many bytes to the server, each checked
//! session stream ADDRESS PORT RATE          new sessions, so many a second, until its input closes
//! session hold ADDRESS PORT                 one session; lines of input are sent and echoed
//! ```
//!
//! The service tells which way a session came by the mark of its first packet, which
//! the lab sets in the server's namespace from the packet's TTL: the appliance sends with
//! 128, clients with 64. So "recorded" is what the server saw, not what a rule promised.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{getsockopt, sockopt};

/// How long a session may take to be opened and answered, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long nothing at all may arrive of a transfer.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(60);

/// How many bytes are checked and sent at once.
const CHUNK: usize = 64 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(problem) => {
            // Nothing more can be done where even standard error is closed.
            let _ = writeln!(io::stderr(), "session: {problem}");
            ExitCode::from(64)
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode, String> {
    match words {
        ["serve", ports @ ..] if !ports.is_empty() => serve(ports),
        ["ask", address, port] => Ok(ask(target(address, port)?, PATIENCE)),
        ["ask", address, port, milliseconds] => Ok(ask(
            target(address, port)?,
            Duration::from_millis(number(milliseconds)?),
        )),
        ["fetch", address, port, bytes] => Ok(fetch(target(address, port)?, number(bytes)?)),
        ["push", address, port, bytes] => Ok(push(target(address, port)?, number(bytes)?)),
        ["stream", address, port, rate] => stream(target(address, port)?, number(rate)?),
        ["hold", address, port] => Ok(hold(target(address, port)?)),
        _ => Err("usage: session serve|ask|fetch|push|stream|hold … (see its source)".to_owned()),
    }
}

fn number<N: std::str::FromStr>(word: &str) -> Result<N, String> {
    word.parse()
        .map_err(|_| format!("`{word}` is not a number"))
}

fn target(address: &str, port: &str) -> Result<SocketAddr, String> {
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("`{address}` is not an address"))?;
    Ok(SocketAddr::new(address, number(port)?))
}

// --- the service ---------------------------------------------------------------

fn serve(ports: &[&str]) -> Result<ExitCode, String> {
    let mut listeners = Vec::new();
    for port in ports {
        // Dual-stack: IPv4 clients come as mapped addresses.
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), number(port)?);
        let listener =
            TcpListener::bind(address).map_err(|error| format!("cannot listen: {error}"))?;
        listeners.push(thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    // A client that goes away is the client's business.
                    let _ = answer(stream);
                });
            }
        }));
    }
    for listener in listeners {
        let _ = listener.join();
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers one client: first a line that tells how its session came, then what it asked for.
fn answer(stream: TcpStream) -> io::Result<()> {
    let recorded = getsockopt(&stream, sockopt::Mark)? != 0;
    let peer = stream.peer_addr()?;
    let way = if recorded { "recorded" } else { "direct" };
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    let mut request = String::new();
    input.read_line(&mut request)?;
    send_line(
        &mut output,
        &format!("{way} {} {}", peer.ip().to_canonical(), peer.port()),
    )?;
    match request.split_whitespace().collect::<Vec<_>>()[..] {
        ["fetch", bytes] => send_pattern(&mut output, bytes.parse().unwrap_or(0)),
        ["push", bytes] => {
            let received = receive_pattern(&mut input, bytes.parse().unwrap_or(0))?;
            send_line(&mut output, &received.to_string())
        }
        ["hold"] => {
            for line in input.lines() {
                send_line(&mut output, &line?)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What transfers consist of, over and over. A prime number of bytes without a shorter period,
/// so that a lost, doubled or swapped segment shows.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let byte = |position: u32| {
        let [_, byte, ..] = position.wrapping_mul(0x9e37_79b1).to_be_bytes();
        byte
    };
    (0..1_048_573).map(byte).collect()
});

/// What stands at `position` of a transfer: at least one byte, at most `limit`.
fn pattern(position: u64, limit: u64) -> &'static [u8] {
    let whole = PATTERN.len() as u64;
    let rest = usize::try_from(position % whole).unwrap_or_default();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(CHUNK);
    let from_there = PATTERN.get(rest..).unwrap_or_default();
    from_there.get(..limit).unwrap_or(from_there)
}

/// One write, so that a line is one segment.
fn send_line(output: &mut impl Write, line: &str) -> io::Result<()> {
    output.write_all(format!("{line}\n").as_bytes())
}

fn send_pattern(output: &mut impl Write, bytes: u64) -> io::Result<()> {
    let mut position = 0;
    while position < bytes {
        let chunk = pattern(position, bytes - position);
        output.write_all(chunk)?;
        position += chunk.len() as u64;
    }
    output.flush()
}

/// Reads `bytes` bytes and checks each; the number that arrived whole.
fn receive_pattern(input: &mut impl Read, bytes: u64) -> io::Result<u64> {
    let mut position = 0;
    let mut buffer = vec![0; CHUNK];
    while position < bytes {
        let wanted = pattern(position, bytes - position);
        let room = buffer.get_mut(..wanted.len()).unwrap_or_default();
        input.read_exact(room)?;
        if room != wanted {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("wrong bytes after byte {position}"),
            ));
        }
        position += wanted.len() as u64;
    }
    Ok(position)
}

// --- the client ----------------------------------------------------------------

/// A session that the server has answered.
struct Session {
    /// The client's own port, by which the appliance's log names it.
    port: u16,
    /// The server's first line: the way, and the peer that it saw.
    answer: String,
    input: BufReader<TcpStream>,
    output: TcpStream,
}

/// Opens a session and waits for the server's first line.
fn open(server: SocketAddr, request: &str, patience: Duration) -> io::Result<Session> {
    let mut output = TcpStream::connect_timeout(&server, patience)?;
    output.set_read_timeout(Some(patience))?;
    let port = output.local_addr()?.port();
    send_line(&mut output, request)?;
    let mut input = BufReader::new(output.try_clone()?);
    let mut answer = String::new();
    if input.read_line(&mut answer)? == 0 {
        // The appliance accepts before it dials: what closes at once found no server.
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(Session {
        port,
        answer: answer.trim_end().to_owned(),
        input,
        output,
    })
}

/// What became of a session that failed, in one word.
fn outcome(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
        // ICMP administratively prohibited: EHOSTUNREACH in IPv4, EACCES in IPv6.
        ErrorKind::PermissionDenied => "prohibited",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset",
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout",
        ErrorKind::UnexpectedEof => "closed",
        ErrorKind::InvalidData => "corrupt",
        _ => "failed",
    }
}

fn say(line: &str) {
    // A reader that has gone away wants no more lines.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn failed(error: &io::Error) -> ExitCode {
    say(outcome(error));
    ExitCode::FAILURE
}

/// `recorded PEER PEER_PORT from PORT`, or what became of it.
fn ask(server: SocketAddr, patience: Duration) -> ExitCode {
    match open(server, "ask", patience) {
        Ok(session) => {
            say(&format!("{} from {}", session.answer, session.port));
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn fetch(server: SocketAddr, bytes: u64) -> ExitCode {
    let whole = open(server, &format!("fetch {bytes}"), PATIENCE).and_then(|mut session| {
        session.output.set_read_timeout(Some(TRANSFER_PATIENCE))?;
        let received = receive_pattern(&mut session.input, bytes)?;
        say(&format!("{} from {}", session.answer, session.port));
        say(&format!("{received} bytes"));
        Ok(())
    });
    whole.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn push(server: SocketAddr, bytes: u64) -> ExitCode {
    let whole = open(server, &format!("push {bytes}"), PATIENCE).and_then(|mut session| {
        session.output.set_read_timeout(Some(TRANSFER_PATIENCE))?;
        send_pattern(&mut session.output, bytes)?;
        let mut received = String::new();
        session.input.read_line(&mut received)?;
        say(&format!("{} from {}", session.answer, session.port));
        say(&format!("{} bytes", received.trim_end()));
        Ok(())
    });
    whole.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

/// Prints the server's first line, then what it echoes; ends with its input or its session.
fn hold(server: SocketAddr) -> ExitCode {
    let held = open(server, "hold", PATIENCE).and_then(|mut session| {
        say(&format!("{} from {}", session.answer, session.port));
        for line in io::stdin().lock().lines() {
            send_line(&mut session.output, &line?)?;
            let mut echo = String::new();
            if session.input.read_line(&mut echo)? == 0 {
                return Err(ErrorKind::ConnectionReset.into());
            }
            say(echo.trim_end());
        }
        Ok(())
    });
    held.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

/// A line a session: when it was begun and ended (microseconds since 1970), the client's
/// port (0 where it never got one), and what became of it.
fn stream(server: SocketAddr, rate: u32) -> Result<ExitCode, String> {
    if rate == 0 {
        return Err("a rate of at least 1 a second is wanted".to_owned());
    }
    let input = thread::spawn(|| io::copy(&mut io::stdin().lock(), &mut io::sink()));
    let step = Duration::from_secs(1) / rate;
    let mut due = Instant::now();
    let mut sessions = Vec::new();
    while !input.is_finished() {
        sessions.push(thread::spawn(move || {
            let begun = microseconds();
            let (port, outcome) = match open(server, "ask", PATIENCE) {
                Ok(session) => (session.port, session.answer),
                Err(error) => (0, outcome(&error).to_owned()),
            };
            say(&format!("{begun} {} {port} {outcome}", microseconds()));
        }));
        due += step;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    for session in sessions {
        let _ = session.join();
    }
    Ok(ExitCode::SUCCESS)
}

fn microseconds() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros())
}
