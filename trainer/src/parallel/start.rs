//! How the processes of a group come to be: the first starts the others, which are calls of the same command, and they
//! come to it over the loopback with a token that nobody else knows.

use std::{
    env, io,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio, exit},
    thread,
    time::{Duration, Instant},
};

use rscapret::{Context, Error, Result};

use super::{
    Alone, Group, Processes,
    link::{Link, Rhythm},
    processes::{LOOK, Running, name},
};
use crate::stage::stop_flag;

/// Where a process that was started finds its [`Seat`]: the environment, which other users cannot read as they can
/// arguments.
const SEAT: &str = "RSCAPRET_SEAT";
/// Time that all have to come.
const ARRIVAL: Duration = Duration::from_secs(60);
/// Time that one who came has to say who it is.
const HELLO: Duration = Duration::from_secs(2);
/// Letters of a token: 32 random bytes.
const TOKEN: usize = 64;

/// Runs a stage in `count` processes, in each with its view of them. The first, which is this one, answers for all: it ends
/// with the first error of any of them, and the others end when it does.
///
/// # Errors
/// The stage's; processes that cannot be started, that fail, or that end before their time.
pub fn run<T>(count: u16, stage: impl FnOnce(&dyn Group) -> Result<T>) -> Result<T> {
    if let Some(seat) = Seat::given()? {
        let group = seat.take()?;
        let done = stage(&group);
        if let Err(error) = &done {
            group.fail(error);
        }
        return done;
    }
    if count <= 1 {
        return stage(&Alone);
    }
    let group = start(count.into())?;
    let done = stage(&group)?;
    group.finish()?;
    Ok(done)
}

/// What a started process is told.
struct Seat {
    rank: usize,
    world: usize,
    address: SocketAddr,
    token: String,
}

impl Seat {
    fn given() -> Result<Option<Self>> {
        let Ok(text) = env::var(SEAT) else { return Ok(None) };
        let refused =
            || Error::Config(format!("{SEAT}: expected what `--gpus` sets but found something else\nunset it"));
        Self::parse(&text).ok_or_else(refused).map(Some)
    }

    fn parse(text: &str) -> Option<Self> {
        let [rank, world, address, token] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let seat = Seat {
            rank: rank.parse().ok()?,
            world: world.parse().ok()?,
            address: address.parse().ok()?,
            token: token.to_string(),
        };
        (0 < seat.rank && seat.rank < seat.world && seat.token.len() == TOKEN).then_some(seat)
    }

    fn text(&self) -> String {
        format!("{} {} {} {}", self.rank, self.world, self.address, self.token)
    }

    /// Comes to the first process.
    fn take(&self) -> Result<Processes> {
        // Ctrl-C reaches all of them; the first decides when they stop.
        stop_flag()?;
        let connect = || -> io::Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&self.address, ARRIVAL)?;
            stream.set_write_timeout(Some(HELLO))?;
            stream.write_all(self.token.as_bytes())?;
            stream.write_all(&(self.rank as u32).to_le_bytes())?;
            Ok(stream)
        };
        let first = name(0, self.world);
        let stream = connect().map_err(|e| Error::Io(e.to_string())).at(&first)?;
        // Whatever this one computes then, nobody waits for it any more.
        let link = Link::new(stream, first, Rhythm::default(), || exit(1))?;
        Ok(Processes::other(self.rank, self.world, link))
    }

    /// Starts the process that takes it, which is called as this one was.
    fn start(&self) -> io::Result<Running> {
        let mut command = Command::new(env::current_exe()?);
        command.args(env::args_os().skip(1)).env(SEAT, self.text());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().map(Running::new)
    }
}

/// Starts `world` - 1 processes and waits until they are there.
fn start(world: usize) -> Result<Processes> {
    let listen = || -> io::Result<(TcpListener, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address) = listen().map_err(|e| Error::Io(e.to_string())).at("loopback")?;
    let token = token()?;
    let child = |rank| {
        let seat = Seat { rank, world, address, token: token.clone() };
        seat.start().map_err(|e| Error::Io(format!("expected it to start but found: {e}"))).at(name(rank, world))
    };
    let mut children = (1..world).map(child).collect::<Result<Vec<_>>>()?;
    let streams = arrivals(&listener, &token, world, ARRIVAL, || {
        for (at, child) in children.iter_mut().enumerate() {
            if let Some(status) = child.ended(Duration::ZERO) {
                return Err(child.error(status)).at(name(at + 1, world));
            }
        }
        Ok(())
    })?;
    let links = streams
        .into_iter()
        .enumerate()
        .map(|(at, stream)| Link::new(stream, name(at + 1, world), Rhythm::default(), || {}))
        .collect::<Result<_>>()?;
    Ok(Processes::first(links, children))
}

/// Connections of ranks 1 and up, by rank. Who does not know the token, or takes a seat twice, is turned away.
fn arrivals(
    listener: &TcpListener,
    token: &str,
    world: usize,
    within: Duration,
    mut look: impl FnMut() -> Result<()>,
) -> Result<Vec<TcpStream>> {
    let mut seats: Vec<Option<TcpStream>> = (1..world).map(|_| None).collect();
    let until = Instant::now() + within;
    while let Some(missing) = seats.iter().position(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Some((rank, stream)) = admit(stream, token)
                    && let Some(seat @ None) = rank.checked_sub(1).and_then(|at| seats.get_mut(at))
                {
                    *seat = Some(stream);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                look()?;
                thread::sleep(LOOK);
            }
            Err(error) => return Err(Error::Io(error.to_string())).at("loopback"),
        }
        if Instant::now() >= until && seats.iter().any(Option::is_none) {
            return Err(Error::Io(format!("expected it to come within {within:?} but found that it did not")))
                .at(name(missing + 1, world));
        }
    }
    Ok(seats.into_iter().flatten().collect())
}

/// The rank of one who knows the token.
fn admit(mut stream: TcpStream, token: &str) -> Option<(usize, TcpStream)> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(HELLO)).ok()?;
    let (mut found, mut rank) = ([0; TOKEN], [0; size_of::<u32>()]);
    stream.read_exact(&mut found).ok()?;
    stream.read_exact(&mut rank).ok()?;
    // All of it is looked at, so that the time tells nothing.
    let differing = found.iter().zip(token.as_bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    (differing == 0).then_some((u32::from_le_bytes(rank) as usize, stream))
}

/// 32 bytes by chance, hexadecimal.
fn token() -> Result<String> {
    let mut bytes = [0; TOKEN / 2];
    getrandom::fill(&mut bytes).map_err(|e| Error::Io(format!("expected random bytes but found: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_written_and_read() {
        let token = token().unwrap();
        assert_ne!(token, self::token().unwrap());
        let address: SocketAddr = "127.0.0.1:4567".parse().unwrap();
        let text = Seat { rank: 2, world: 3, address, token: token.clone() }.text();
        let seat = Seat::parse(&text).unwrap();
        assert_eq!((seat.rank, seat.world, seat.address, &seat.token), (2, 3, address, &token));
        let words =
            ["", "2 3", &text[2..], &text.replacen('2', "3", 1), &text.replacen('2', "0", 1), &format!("{text}0")];
        assert!(words.iter().all(|text| Seat::parse(text).is_none()));
    }

    #[test]
    fn who_does_not_know_the_token_is_turned_away() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let token = token().unwrap();
        let come = |token: &str, rank: u32, more: u8| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&[token.as_bytes(), &rank.to_le_bytes(), &[more]].concat()).unwrap();
            stream
        };
        // One too short to be a token, a wrong one, ranks that are no seats, one that comes twice.
        let _others = [
            come("", 1, 0),
            come(&token.replace(['0', '1', '2'], "a"), 1, 1),
            come(&token, 0, 2),
            come(&token, 3, 3),
            come(&token, 2, 4),
            come(&token, 2, 5),
            come(&token, 1, 6),
        ];
        let streams = arrivals(&listener, &token, 3, ARRIVAL, || Ok(())).unwrap();
        let found: Vec<u8> = streams
            .into_iter()
            .map(|mut stream| {
                let mut more = [0];
                stream.read_exact(&mut more).unwrap();
                more[0]
            })
            .collect();
        assert_eq!(found, [6, 4]);
    }

    #[test]
    fn nobody_is_waited_for_for_ever() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let error = arrivals(&listener, "", 2, Duration::from_millis(50), || Ok(())).unwrap_err().to_string();
        assert!(error.starts_with("process 2 of 2: expected it to come within 50ms"), "{error}");
        let ended = || Err(Error::Io("it ended".into()));
        assert_eq!(arrivals(&listener, "", 2, ARRIVAL, ended).unwrap_err().to_string(), "it ended");
    }
}
