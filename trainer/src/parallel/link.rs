//! A connection between two processes of a group: messages that arrive whole, and signs of life between them, so that no
//! wait outlasts the one that is waited for.

use std::{
    cell::RefCell,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rscapret::{Context, Error, Result};

/// Time that one who failed waits for the others to know.
const FAREWELL: Duration = Duration::from_secs(5);

/// Kinds of messages.
const ALIVE: u8 = 0;
const DATA: u8 = 1;
const FAILED: u8 = 2;

/// How long silence may last.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    /// Time between signs of life, whatever the process computes meanwhile.
    pub alive: Duration,
    /// Silence after which the other is taken for gone.
    pub silence: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Rhythm { alive: Duration::from_secs(2), silence: Duration::from_secs(60) }
    }
}

/// One end of a connection.
pub struct Link {
    stream: TcpStream,
    writer: Arc<Mutex<TcpStream>>,
    inbox: Receiver<Result<Vec<u8>>>,
    /// A message that came while it was only looked whether the other is there.
    early: RefCell<Option<Vec<u8>>>,
    /// This end closes: what the reader finds then is no failure.
    closing: Arc<AtomicBool>,
}

impl Link {
    /// A thread listens from now on, one speaks in its `rhythm`. `ended` is called there when the other end is gone, which
    /// its errors call by `name`.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(stream: TcpStream, name: String, rhythm: Rhythm, ended: impl FnOnce() + Send + 'static) -> Result<Self> {
        let (sender, inbox) = channel();
        let closing = Arc::new(AtomicBool::new(false));
        let open = || -> io::Result<_> {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(rhythm.silence))?;
            stream.set_write_timeout(Some(rhythm.silence))?;
            let writer = Arc::new(Mutex::new(stream.try_clone()?));
            let (reader, closing, weak) = (stream.try_clone()?, closing.clone(), Arc::downgrade(&writer));
            thread::Builder::new().name("link".into()).spawn(move || {
                let error = listen(reader, &sender, rhythm);
                let _ = sender.send(Err(error).at(name));
                if !closing.load(Ordering::SeqCst) {
                    ended();
                }
            })?;
            thread::Builder::new().name("alive".into()).spawn(move || {
                while let Some(writer) = weak.upgrade() {
                    if write(&writer, ALIVE, &[]).is_err() {
                        return;
                    }
                    drop(writer);
                    thread::sleep(rhythm.alive);
                }
            })?;
            Ok(writer)
        };
        let writer = open().map_err(|e| Error::Io(e.to_string()))?;
        Ok(Link { stream, writer, inbox, early: RefCell::default(), closing })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        if write(&self.writer, DATA, bytes).is_ok() {
            return Ok(());
        }
        // Why it is gone, the listener knows; what else it heard does not matter any more.
        loop {
            self.receive()?;
        }
    }

    /// The next message, when it is there.
    ///
    /// # Errors
    /// With the other's name: its own error where it failed; that it ended, or is silent.
    pub fn receive(&self) -> Result<Vec<u8>> {
        match self.early.take() {
            Some(bytes) => Ok(bytes),
            None => self.inbox.recv().unwrap_or_else(|_| Err(gone())),
        }
    }

    /// Looks whether the other is there still; a message stays to be received.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn check(&self) -> Result<()> {
        let mut early = self.early.borrow_mut();
        if early.is_some() {
            return Ok(());
        }
        match self.inbox.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(gone()),
            Ok(message) => {
                *early = Some(message?);
                Ok(())
            }
        }
    }

    /// Tells the other why this process ends, and waits a little until it has gone for it.
    pub fn fail(&self, why: &str) {
        let until = Instant::now() + FAREWELL;
        if write(&self.writer, FAILED, why.as_bytes()).is_ok() {
            while let Some(left) = until.checked_duration_since(Instant::now())
                && let Ok(Ok(_)) = self.inbox.recv_timeout(left)
            {}
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn gone() -> Error {
    Error::Io("expected it to go on but found that it ended".into())
}

/// Passes on what is heard until there is an end to it.
fn listen(mut stream: TcpStream, inbox: &Sender<Result<Vec<u8>>>, rhythm: Rhythm) -> Error {
    loop {
        match read(&mut stream) {
            Ok((ALIVE, _)) => {}
            Ok((DATA, bytes)) => {
                if inbox.send(Ok(bytes)).is_err() {
                    return gone();
                }
            }
            Ok((FAILED, why)) => return Error::Backend(String::from_utf8_lossy(&why).into_owned()),
            Ok((kind, _)) => return Error::Malformed(format!("expected a message but found one of kind {kind}")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Error::Io(format!(
                    "expected a sign of life every {} s but found none in {} s",
                    rhythm.alive.as_secs_f64(),
                    rhythm.silence.as_secs_f64()
                ));
            }
            Err(_) => return gone(),
        }
    }
}

fn read(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let (mut kind, mut length) = ([0], [0; size_of::<u64>()]);
    stream.read_exact(&mut kind)?;
    stream.read_exact(&mut length)?;
    let (length, mut bytes) = (u64::from_le_bytes(length), Vec::new());
    stream.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok((kind[0], bytes))
}

fn write(writer: &Mutex<TcpStream>, kind: u8, bytes: &[u8]) -> io::Result<()> {
    // A panic between two writes leaves half a message: the other end takes it for an end.
    let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
    let mut head = [kind; 1 + size_of::<u64>()];
    head[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    stream.write_all(&head)?;
    stream.write_all(bytes)
}

#[cfg(test)]
pub mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// Both ends of a connection.
    pub fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    pub fn link(stream: TcpStream, name: &str, rhythm: Rhythm) -> Link {
        Link::new(stream, name.into(), rhythm, || {}).unwrap()
    }

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (one, other) = connected();
        let (one, other) = (link(one, "one", Rhythm::default()), link(other, "other", Rhythm::default()));
        // More than what lies in buffers between them: nobody has asked for it yet.
        let large: Vec<u8> = (0..20_000_000u32).map(|i| (i % 251) as u8).collect();
        one.send(&large).unwrap();
        one.send(&[]).unwrap();
        other.send(b"back").unwrap();
        assert!(other.receive().unwrap() == large);
        assert_eq!((other.receive().unwrap(), one.receive().unwrap()), (Vec::new(), b"back".to_vec()));
        // To look takes nothing away.
        one.check().unwrap();
        other.send(b"more").unwrap();
        while one.early.borrow().is_none() {
            one.check().unwrap();
        }
        assert_eq!(one.receive().unwrap(), b"more");
    }

    #[test]
    fn a_peer_that_ends_fails_or_is_silent_is_told() {
        let (one, other) = connected();
        let one = link(one, "process 2", Rhythm::default());
        drop(link(other, "other", Rhythm::default()));
        let error = one.receive().unwrap_err().to_string();
        assert_eq!(error, "process 2: expected it to go on but found that it ended");

        let (one, other) = connected();
        let (one, other) = (link(one, "process 2", Rhythm::default()), link(other, "other", Rhythm::default()));
        let failing = thread::spawn(move || other.fail("out of memory"));
        assert_eq!(one.receive().unwrap_err().to_string(), "process 2: out of memory");
        drop(one);
        failing.join().unwrap();

        // Nothing ever comes from the other end, which is open.
        let (one, _other) = connected();
        let rhythm = Rhythm { alive: Duration::from_millis(100), silence: Duration::from_millis(300) };
        let error = link(one, "process 2", rhythm).receive().unwrap_err().to_string();
        assert_eq!(error, "process 2: expected a sign of life every 0.1 s but found none in 0.3 s");

        // Half a message.
        let (one, mut other) = connected();
        let one = link(one, "process 2", Rhythm::default());
        other.write_all(&[DATA, 9, 0, 0, 0, 0, 0, 0, 0, 1, 2]).unwrap();
        drop(other);
        assert!(one.receive().is_err());
        assert!(one.send(&[0; 1 << 20]).is_err());
    }

    #[test]
    fn who_lives_is_waited_for() {
        let (one, other) = connected();
        let rhythm = Rhythm { alive: Duration::from_millis(50), silence: Duration::from_secs(3) };
        let (one, other) = (link(one, "one", rhythm), link(other, "other", rhythm));
        // Longer than the silence that would be an end.
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_secs(4));
            other.send(b"late").unwrap();
            other
        });
        assert_eq!(one.receive().unwrap(), b"late");
        late.join().unwrap();
    }
}
