use super::*;
use crate::config::Config;
use crate::job::{Given, JobState};
use crate::pace::GroupId;

fn core() -> Core {
    let text = "[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\nretry = { base = \"1s\", jitter = \"none\" }\n\
                limits = [ { concurrency = 1 } ]";
    let config = Config::parse(text, None, &[]).expect("valid");
    Core::new(Arc::new(config.providers[0].clone()), Time::ZERO).expect("paceable")
}

fn claimed(pk: JobPk, epoch: i64, run: u32) -> Claimed {
    let envelope = format!(r#"{{"id":"j{pk}","provider":"p","request":{{"path":"/"}}}}"#);
    let text = "[[provider]]\nname = \"p\"\nbase_url = \"http://x\"";
    let catalog = Config::parse(text, None, &[]).expect("valid").catalog();
    let job = Job::parse(envelope.as_bytes(), &Given::default(), &catalog).expect("valid");
    let (attempts, failures) = (0, 0);
    Claimed { pk, epoch, run, attempts, failures, first_attempt_ms: None, backoff: Duration::ZERO, created_ms: 0, job }
}

/// Hands an event in, some milliseconds later than the last one, and takes the commands out: the calls,
/// and the records.
fn step(core: &mut Core, event: Event) -> (Vec<JobPk>, Vec<Record>) {
    thread_local!(static STEP: std::cell::Cell<u64> = const { std::cell::Cell::new(1) });
    let mono = Time::from_nanos(10_000_000 * STEP.replace(STEP.get() + 1));
    let now = Now { mono, wall: 1_000 };
    core.handle(event, now, &mut || 0.5);
    let (mut calls, mut records) = (Vec::new(), Vec::new());
    for command in core.advance(now) {
        match command {
            Command::Call { pk, .. } => calls.push(pk),
            Command::Record(record) if !matches!(record.next, Next::Running) => records.push(*record),
            Command::Record(_) | Command::Note(_) => {}
        }
    }
    (calls, records)
}

fn answer(core: &mut Core, pk: JobPk, status: u16) -> (Vec<JobPk>, Vec<Record>) {
    step(core, Event::Head { pk, signal: Box::default() });
    step(core, Event::Ended { pk, end: answered(status) })
}

fn answered(status: u16) -> CallEnd {
    let body = bytes::Bytes::new();
    let response = StoredResponse { status, headers: "{}".to_owned(), content_type: None, body, truncated: false };
    CallEnd::Answered(Box::new(Answered {
        response,
        signal: Signal::default(),
        told: Signal::default(),
        cost: None,
        ruling: None,
    }))
}

/// A backoff that is over at once: the job is due again before this dispatcher has heard that its
/// record is committed.
#[test]
fn a_job_that_is_claimed_again_before_its_record_is_answered_is_called_again() {
    let mut core = core();
    assert_eq!(step(&mut core, Event::Claimed(vec![claimed(7, 1, 1)])).0, [7]);
    let (_, records) = answer(&mut core, 7, 503);
    assert!(matches!(records[0].next, Next::Wait { .. }));
    let (calls, _) = step(&mut core, Event::Claimed(vec![claimed(7, 2, 1)]));
    assert!(calls.is_empty(), "one thing after the other");
    let (calls, _) = step(&mut core, Event::Recorded { pk: 7, recorded: Recorded::Done });
    assert_eq!(calls, [7], "nobody else has it");
    let (_, records) = answer(&mut core, 7, 200);
    assert_eq!(records[0].epoch, 2);
    step(&mut core, Event::Recorded { pk: 7, recorded: Recorded::Done });
    assert!(core.is_idle());
}

#[test]
fn a_job_that_was_let_go_of_and_claimed_again_while_it_is_sent_is_not_sent_twice() {
    let mut core = core();
    step(&mut core, Event::Claimed(vec![claimed(7, 1, 1), claimed(8, 1, 1)]));
    let again = vec![claimed(7, 2, 1), claimed(8, 2, 1), claimed(7, 1, 1)];
    assert!(step(&mut core, Event::Claimed(again)).0.is_empty(), "7 is being sent, 8 waits for it");
    let (calls, records) = answer(&mut core, 7, 200);
    assert_eq!((calls, records[0].epoch), (vec![8], 2), "its end counts for the claim that holds");
    let (_, records) = answer(&mut core, 8, 200);
    assert_eq!(records[0].epoch, 2);
    assert!(matches!(records[0].next, Next::Finish { state: JobState::Succeeded, .. }));
}

#[test]
fn a_replay_that_is_claimed_before_the_end_of_the_last_run_is_heard_of_is_a_new_run() {
    let mut core = core();
    step(&mut core, Event::Claimed(vec![claimed(7, 1, 1)]));
    answer(&mut core, 7, 404);
    assert!(step(&mut core, Event::Claimed(vec![claimed(7, 2, 2)])).0.is_empty());
    assert_eq!(step(&mut core, Event::Recorded { pk: 7, recorded: Recorded::Done }).0, [7]);
    let (_, records) = answer(&mut core, 7, 200);
    assert_eq!((records[0].epoch, records[0].run), (2, 2));
}

#[test]
fn a_job_whose_key_is_gone_waits_and_gives_up_when_its_time_is_over() {
    let mut core = core();
    let pinned = |first_attempt_ms| {
        let mut claimed = Claimed { first_attempt_ms, ..claimed(7, 1, 1) };
        claimed.job.key = Some("gone".to_owned());
        Event::Claimed(vec![claimed])
    };
    let (_, records) = step(&mut core, pinned(None));
    assert!(matches!(records[0].next, Next::Wait { reason: WaitReason::NoKey, .. }), "{records:?}");
    step(&mut core, Event::Recorded { pk: 7, recorded: Recorded::Done });
    let a_day_ago = 1_000 - 24 * 3_600_000;
    let (_, records) = step(&mut core, pinned(Some(a_day_ago)));
    let gave_up = matches!(records[0].next, Next::Finish { reason: Some(DeadReason::GaveUp), .. });
    assert!(gave_up, "{records:?}");
}

#[test]
fn nothing_leaves_beyond_what_the_lease_allows() {
    let text = "[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\nlimits = [ { concurrency = 9 } ]";
    let config = Config::parse(text, None, &[]).expect("valid");
    let provider = Arc::new(config.providers[0].clone());
    let sent_with = |until, calls, open| {
        let mut core = Core::new(Arc::clone(&provider), Time::ZERO).expect("paceable");
        core.allow(GroupId(0), Allowance { until, calls, open }, Time::ZERO);
        let jobs = (1..=5).map(|pk| claimed(pk, 1, 1)).collect();
        step(&mut core, Event::Claimed(jobs)).0.len()
    };
    assert_eq!(sent_with(Time::MAX, 9, 9), 5);
    assert_eq!(sent_with(Time::ZERO, 9, 9), 0, "its time is over");
    assert_eq!(sent_with(Time::MAX, 3, 9), 3, "so many calls are written ahead");
    assert_eq!(sent_with(Time::MAX, 9, 2), 2, "and so many open ones");
}

/// A store that is slower than the provider: what a crash would leave unknown, and what is held in memory, has a bound.
#[test]
fn no_call_is_made_while_the_ends_of_too_many_are_not_committed() {
    let mut core = core();
    let most = OPEN_MAX as JobPk;
    let mut called = step(&mut core, Event::Claimed((1..=most + 2).map(|pk| claimed(pk, 1, 1)).collect())).0;
    while let Some(&pk) = called.last().filter(|_| called.len() < OPEN_MAX) {
        called.extend(answer(&mut core, pk, 200).0);
    }
    assert!(answer(&mut core, most, 200).0.is_empty(), "nothing of them is committed");
    assert_eq!(core.counts(), (2, 0));
    assert_eq!(step(&mut core, Event::Recorded { pk: 1, recorded: Recorded::Done }).0, [most + 1]);
    assert!(answer(&mut core, most + 1, 200).0.is_empty());
}

#[test]
fn a_call_that_was_withheld_goes_back_as_if_it_had_never_had_a_permit() {
    let mut core = core();
    assert_eq!(step(&mut core, Event::Claimed(vec![claimed(7, 1, 1), claimed(8, 1, 1)])).0, [7]);
    let (calls, records) = step(&mut core, Event::Ended { pk: 7, end: CallEnd::Withheld });
    assert_eq!(calls, [8], "its place is free");
    assert!(matches!(records[..], [Record { next: Next::Release, attempt: None, failures: 0, .. }]), "{records:?}");
}

#[test]
fn calls_may_leave_as_long_as_their_lease_is_held() {
    let mut core = core();
    let (key, at) = (KeyId(0), |seconds| Time::ZERO + Duration::from_secs(seconds));
    let leave = core.leave(key);
    assert!(leave.is_given(at(1_000)), "without any bound");
    let until = |seconds| Allowance { until: at(seconds), calls: 9, open: 9 };
    core.allow(GroupId(0), until(10), at(4));
    assert!(leave.is_given(at(9)) && !leave.is_given(at(10)));
    core.allow(GroupId(0), until(12), at(6));
    assert!(leave.is_given(at(11)), "the lease was renewed meanwhile");
    step(&mut core, Event::Suspend(vec![GroupId(0)]));
    assert!(!leave.is_given(at(7)), "it is somebody else's");
}
