//! A group of processes, each connected with the first over the loopback. Sums are added up there in the order of ranks,
//! whichever comes first, so that the same seed gives the same bytes.

use std::{
    cell::RefCell,
    io::Read as _,
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rscapret::{Context, Error, Result};

use super::{Group, Host, link::Link, sum, wire};

/// Time that a process which is done, or gone, has to end.
const END: Duration = Duration::from_secs(30);
/// Time between looks whether it has.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Most bytes that are kept of what a process said last.
const SAID: usize = 2048;

/// A process that this one started; it ends with it.
pub struct Running {
    process: Child,
    /// The end of its standard error.
    said: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    /// Of a process whose standard error is a pipe.
    pub fn new(mut process: Child) -> Self {
        let said = Arc::new(Mutex::new(Vec::new()));
        if let Some(mut pipe) = process.stderr.take() {
            let said = said.clone();
            thread::spawn(move || {
                let mut piece = [0; SAID];
                while let Ok(length @ 1..) = pipe.read(&mut piece) {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.extend(&piece[..length]);
                    let old = said.len().saturating_sub(SAID);
                    said.drain(..old);
                }
            });
        }
        Running { process, said }
    }

    /// How it ended, as far as it does within a time.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => thread::sleep(LOOK),
                _ => return None,
            }
        }
    }

    /// The error of one that ended before its time.
    pub fn error(&self, status: ExitStatus) -> Error {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        let said = if said.trim().is_empty() { String::new() } else { format!("\nit said: {}", said.trim()) };
        Error::Io(format!(
            "expected it to go on but found that it ended ({status}){said}\nwhat was saved last is intact: go on from there"
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Processes over the loopback.
pub struct Processes {
    rank: usize,
    world: usize,
    /// Of the first, to all others by rank; of the others, to the first.
    links: Vec<Link>,
    /// Of the first, by rank, where it started them.
    children: RefCell<Vec<Running>>,
}

/// A process as errors call it.
pub(super) fn name(rank: usize, world: usize) -> String {
    format!("process {} of {world}", rank + 1)
}

impl Processes {
    /// The first of them, with its links to the others.
    pub(super) fn first(links: Vec<Link>, children: Vec<Running>) -> Self {
        Processes { rank: 0, world: links.len() + 1, links, children: RefCell::new(children) }
    }

    /// Another one, with its link to the first.
    pub(super) fn other(rank: usize, world: usize, link: Link) -> Self {
        Processes { rank, world, links: vec![link], children: RefCell::default() }
    }

    /// Tells the first why this one ends.
    pub(super) fn fail(&self, error: &Error) {
        if self.rank > 0 {
            self.links.iter().for_each(|link| link.fail(&error.to_string()));
        }
    }

    /// Waits for the others' end.
    pub(super) fn finish(self) -> Result<()> {
        // No borrow lasts as long as the loop.
        let count = self.children.borrow().len();
        for at in 0..count {
            let ended = self.children.borrow_mut()[at].ended(END);
            let told = || self.links[at].check().err().map_or(Ok(()), |error| Err(self.why(at, error)));
            match ended {
                Some(status) if status.success() => {}
                Some(status) => {
                    told()?;
                    return Err(self.children.borrow()[at].error(status)).at(name(at + 1, self.world));
                }
                None => {
                    let found = format!("expected it to end with the others but found it running after {END:?}");
                    return Err(Error::Io(found)).at(name(at + 1, self.world));
                }
            }
        }
        Ok(())
    }

    /// An error of the link `at`, with what is known of the process there.
    fn why(&self, at: usize, error: Error) -> Error {
        // One that failed has told why.
        if !matches!(error.root(), Error::Io(_)) {
            return error;
        }
        let mut children = self.children.borrow_mut();
        let Some(child) = children.get_mut(at) else { return error };
        match child.ended(Duration::from_secs(2)) {
            Some(status) => Error::At { context: name(at + 1, self.world), source: Box::new(child.error(status)) },
            None => error,
        }
    }

    fn receive(&self, at: usize) -> Result<Vec<u8>> {
        self.links[at].receive().map_err(|error| self.why(at, error))
    }

    fn send(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.links[at].send(bytes).map_err(|error| self.why(at, error))
    }

    fn send_all(&self, bytes: &[u8]) -> Result<()> {
        (0..self.links.len()).try_for_each(|at| self.send(at, bytes))
    }
}

impl Group for Processes {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        if self.rank > 0 {
            self.send(0, &own)?;
            let all = self.receive(0)?;
            return Ok(wire::unpack(&all)?.into_iter().map(<[u8]>::to_vec).collect());
        }
        let mut all = vec![own];
        for at in 0..self.links.len() {
            all.push(self.receive(at)?);
        }
        self.send_all(&wire::pack(&all))?;
        Ok(all)
    }

    fn broadcast(&self, own: &[u8]) -> Result<Vec<u8>> {
        if self.rank > 0 {
            return self.receive(0);
        }
        self.send_all(own)?;
        Ok(own.to_vec())
    }

    /// Every worker's own, for a sum of sums would be another one in its last bits.
    fn all_reduce_sum(&self, parts: Vec<Host>) -> Result<Host> {
        if self.rank > 0 {
            self.send(0, &wire::pack(parts.iter().map(wire::from_gradients)))?;
            return wire::to_gradients(&self.receive(0)?);
        }
        let mut total = sum(parts);
        for at in 0..self.links.len() {
            for part in wire::unpack(&self.receive(at)?)? {
                total = sum(vec![total, wire::to_gradients(part)?]);
            }
        }
        self.send_all(&wire::from_gradients(&total))?;
        Ok(total)
    }

    fn check(&self) -> Result<()> {
        (0..self.links.len()).try_for_each(|at| self.links[at].check().map_err(|error| self.why(at, error)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::{
        super::{
            Embedded, first_then_others,
            link::{
                Rhythm,
                tests::{connected, link},
            },
            same_weights,
        },
        *,
    };
    use crate::vars::Vars;

    /// What each of three processes, here threads, answers; the first is the slowest, the last the fastest.
    fn three<T: Send>(act: impl Fn(&Processes) -> T + Sync) -> Vec<T> {
        let mut groups = Vec::new();
        let mut links = Vec::new();
        for rank in 1..3 {
            let (here, there) = connected();
            links.push(link(here, &name(rank, 3), Rhythm::default()));
            groups.push(Processes::other(rank, 3, link(there, &name(0, 3), Rhythm::default())));
        }
        groups.insert(0, Processes::first(links, Vec::new()));
        let act = &act;
        thread::scope(|scope| {
            let late = |group: Processes| {
                thread::sleep(Duration::from_millis(60 - 20 * group.rank as u64));
                act(&group)
            };
            let threads: Vec<_> = groups.into_iter().map(|group| scope.spawn(move || late(group))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn gradients(values: &[f32]) -> Host {
        Host::from([("w".to_string(), values.to_vec())])
    }

    #[test]
    fn sums_are_those_of_one_process_to_the_last_bit() {
        // In any other order, or as a sum of sums, the small ones would count for more or less.
        let parts: Vec<Vec<f32>> =
            [[1e8, 1.0], [3.0, 1e-8], [-1e8, 3e-8], [5.0, -1.0], [7e-3, 1e-9], [1.0, 2.0]].map(Vec::from).into();
        let expected = sum(parts.iter().map(|part| gradients(part)));
        assert_ne!(expected["w"], sum(parts.iter().rev().map(|part| gradients(part)))["w"]);
        let own = |rank: usize| parts[2 * rank..][..2].iter().map(|part| gradients(part)).collect();
        for found in three(|group| group.all_reduce_sum(own(group.rank())).unwrap()) {
            assert_eq!(found, expected);
        }
        // A variable that only the last one's loss touches, and workers that have nothing to do.
        let parts = |group: &Processes| match group.rank() {
            2 => vec![Host::new(), gradients(&[2.5])],
            _ => vec![Host::new()],
        };
        assert_eq!(three(|group| group.all_reduce_sum(parts(group)).unwrap()), vec![gradients(&[2.5]); 3]);
    }

    #[test]
    fn all_is_gathered_by_rank_and_the_first_is_heard_by_all() {
        let gathered = three(|group| group.all_gather(vec![group.rank() as u8; group.rank()]).unwrap());
        assert_eq!(gathered, vec![vec![vec![], vec![1], vec![2, 2]]; 3]);
        assert_eq!(three(|group| group.broadcast(&[group.rank() as u8 + 7]).unwrap()), [[7]; 3]);
        let order = Mutex::new(Vec::new());
        three(|group| {
            let come = || {
                order.lock().unwrap().push(group.rank());
                Ok(())
            };
            first_then_others(group, come).unwrap();
        });
        assert_eq!(order.lock().unwrap()[0], 0);
    }

    #[test]
    fn embeddings_of_all_come_in_their_order() {
        let found = three(|group| {
            // The last has nothing.
            let rows = 2 - group.rank();
            let tensor = |sign: f32| {
                let values: Vec<f32> = (0..rows * 3).map(|i| sign * (i + 10 * group.rank()) as f32).collect();
                candle_core::Tensor::from_vec(values, (rows, 3), &Device::Cpu).unwrap()
            };
            let own = Embedded::new(&tensor(1.0), &tensor(-1.0)).unwrap();
            let all = Embedded::gather(group, vec![own]).unwrap();
            let tensors = Embedded::tensors(&all, 3, &Device::Cpu).unwrap();
            let text: Vec<_> = tensors.iter().map(|(_, text)| text.to_vec2::<f32>().unwrap()).collect();
            (tensors.iter().map(|(image, _)| image.dims().to_vec()).collect::<Vec<_>>(), text)
        });
        let text = vec![vec![vec![-0.0, -1.0, -2.0], vec![-3.0, -4.0, -5.0]], vec![vec![-10.0, -11.0, -12.0]], vec![]];
        let expected = (vec![vec![2, 3], vec![1, 3], vec![0, 3]], text);
        assert_eq!(found, vec![expected; 3]);
    }

    #[test]
    fn weights_that_differ_are_told() {
        let vars = |w: f32| Vars::from([("w".to_string(), Var::new(&[1f32, w], &Device::Cpu).unwrap())]);
        three(|group| same_weights(group, &vars(2.0), 7).unwrap());
        for error in three(|group| same_weights(group, &vars(2.0 + (group.rank() / 2) as f32), 7).unwrap_err()) {
            let words = "expected the same weights in all processes after 7 steps but found others in process 3 of 3\n";
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }

    #[test]
    fn one_that_goes_away_ends_all() {
        for found in three(|group| match group.rank() {
            1 => Ok(()),
            _ => group.all_reduce_sum(vec![gradients(&[1.0])]).and_then(|_| group.barrier()),
        })
        .into_iter()
        .enumerate()
        {
            let (rank, result) = found;
            let error = result.err().map(|error| error.to_string());
            let gone = |name: &str| Some(format!("{name}: expected it to go on but found that it ended"));
            let expected = match rank {
                0 => gone("process 2 of 3"),
                1 => None,
                _ => gone("process 1 of 3"),
            };
            assert_eq!(error, expected);
        }
        let failed = three(|group| {
            if group.rank() == 2 {
                group.fail(&Error::Backend("out of memory".into()));
            }
            group.barrier().map_err(|error| error.to_string())
        });
        assert_eq!(failed[0], Err("process 3 of 3: out of memory".to_string()));
        assert!(failed[1].is_err() && failed[2].is_err(), "{failed:?}");
    }
}
