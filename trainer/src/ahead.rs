//! Work that threads do ahead of whoever needs it: images are read while a model runs.

use std::{
    panic::resume_unwind,
    sync::mpsc::sync_channel,
    thread::{ScopedJoinHandle, available_parallelism, scope},
};

/// Results that a thread may have ready and not yet asked for.
const READY: usize = 2;

/// Cores of this machine that the program may use.
pub fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Hands the results of `make` on all of `work` to `take`, in the order of the work, made by `threads` threads. They are
/// never more than a few results ahead, and stop when `take` returns.
pub fn ahead<T: Sync, R: Send, O>(
    work: &[T],
    threads: usize,
    make: impl Fn(&T) -> R + Sync,
    take: impl FnOnce(&mut dyn Iterator<Item = R>) -> O,
) -> O {
    let threads = threads.clamp(1, work.len().max(1));
    scope(|scope| {
        let make = &make;
        // By turns, each with a queue of its own: so the order is kept.
        let queues: Vec<_> = (0..threads)
            .map(|first| {
                let (full, queue) = sync_channel(READY);
                scope.spawn(move || {
                    // Until nobody takes any more.
                    work.iter().skip(first).step_by(threads).try_for_each(|item| full.send(make(item)))
                });
                queue
            })
            .collect();
        take(&mut (0..work.len()).map_while(|at| queues[at % threads].recv().ok()))
    })
}

/// Gives `work` what `make` makes for a step, below `end`, that it asks for; a thread makes that of the step after it
/// meanwhile.
pub fn step_ahead<T: Send, O>(
    end: u64,
    make: impl Fn(u64) -> T + Sync,
    work: impl FnOnce(&mut dyn FnMut(u64) -> T) -> O,
) -> O {
    let make = &make;
    scope(|scope| {
        let mut next: Option<(u64, ScopedJoinHandle<'_, T>)> = None;
        work(&mut |step| {
            let made = match next.take() {
                Some((at, thread)) if at == step => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                _ => make(step),
            };
            next = (step + 1 < end).then(|| (step + 1, scope.spawn(move || make(step + 1))));
            made
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_order_and_not_too_far_ahead() {
        let work: Vec<usize> = (0..50).collect();
        for threads in [0, 1, 3, 100] {
            let (made, limit) = (AtomicUsize::new(0), threads.clamp(1, 50) * (READY + 2));
            let make = |&item: &usize| {
                made.fetch_add(1, Ordering::SeqCst);
                item * item
            };
            let taken = ahead(&work, threads, make, |results| {
                let mut taken = Vec::new();
                for result in results {
                    let most = made.load(Ordering::SeqCst);
                    assert!(most <= taken.len() + limit, "{most} made, {} taken", taken.len());
                    taken.push(result);
                }
                taken
            });
            assert_eq!(taken, work.iter().map(|item| item * item).collect::<Vec<_>>());
        }
        assert_eq!(ahead(&[], 4, |_: &usize| 1, |results| results.count()), 0);
    }

    #[test]
    fn who_stops_early_waits_for_little() {
        let work: Vec<usize> = (0..10_000).collect();
        let made = AtomicUsize::new(0);
        let first = ahead(
            &work,
            2,
            |&item| {
                made.fetch_add(1, Ordering::SeqCst);
                item
            },
            |results| results.next(),
        );
        assert_eq!(first, Some(0));
        assert!(made.into_inner() <= 2 * (READY + 2) + 1);
    }

    #[test]
    fn a_step_is_made_while_the_one_before_is_in_use() {
        let made = AtomicUsize::new(0);
        let make = |step: u64| {
            made.fetch_add(1, Ordering::SeqCst);
            10 * step
        };
        let used = step_ahead(6, make, |get| {
            // As after a resumption; and one out of turn, which is made anew.
            let mut used = vec![get(2)];
            while made.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            used.extend([3, 4, 1, 5].map(get));
            used
        });
        assert_eq!(used, [20, 30, 40, 10, 50]);
        // 2 to 5 and 1, those after 4 and after 1, and none after the last.
        assert_eq!(made.into_inner(), 7);
    }
}
