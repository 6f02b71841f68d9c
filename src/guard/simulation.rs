//! How often the guard is wrong, by trying: windows of answers that fail by chance, at a rate that is known.

use super::statistics::wilson;

const THRESHOLD: f64 = 0.01;
const WINDOWS: u32 = 10_000;
/// Answers in a window. At 60 s these are 8, 80 and 800 a second.
const LOADS: [u64; 3] = [500, 5_000, 50_000];
/// How many times the threshold the true rate is.
const TIMES: [f64; 7] = [0., 0.25, 0.5, 0.75, 1., 2., 5.];

/// Of so many answers, how many fail. By the gaps between them, which are geometric: that takes as long as there are failures.
fn failures(random: &mut fastrand::Rng, samples: u64, rate: f64) -> u64 {
    let mut count = 0;
    let mut at = 0.;
    if rate <= 0. {
        return 0;
    }
    let scale = (1. - rate).ln();
    loop {
        at += 1. + ((1. - random.f64()).ln() / scale).floor();
        if at > samples as f64 {
            return count;
        }
        count += 1;
    }
}

/// Shares of windows: breach, healthy, no data.
fn verdicts(samples: u64, rate: f64) -> [f64; 3] {
    let mut random = fastrand::Rng::with_seed(20_261_125);
    let mut counts = [0_u32; 3];
    for _ in 0..WINDOWS {
        let interval = wilson(failures(&mut random, samples, rate), samples);
        let verdict = match interval {
            interval if interval.lower > THRESHOLD => 0,
            interval if interval.upper < THRESHOLD => 1,
            _ => 2,
        };
        counts[verdict] += 1;
    }
    counts.map(|count| f64::from(count) / f64::from(WINDOWS))
}

fn table() -> String {
    let mut text =
        String::from("| true rate | answers in the window | breach | healthy | no data |\n|---|---|---|---|---|\n");
    for times in TIMES {
        for samples in LOADS {
            let [breach, healthy, no_data] = verdicts(samples, times * THRESHOLD).map(|share| share * 100.);
            text += &format!("| {times} × threshold | {samples} | {breach:.2} % | {healthy:.2} % | {no_data:.2} % |\n");
        }
    }
    text
}

#[test]
fn false_alarms_and_misses_are_rare() {
    for samples in LOADS {
        let of = |times: f64| verdicts(samples, times * THRESHOLD);
        // False alarms: what is well below is no breach, and at the threshold itself one side of 95 % is.
        assert_eq!(of(0.)[0], 0.);
        assert!(of(0.5)[0] < 0.002, "{samples}: {:?}", of(0.5));
        assert!(of(1.)[0] < 0.04, "{samples}: {:?}", of(1.));
        // What is not kept is hardly ever called healthy.
        assert!(of(1.)[1] < 0.04 && of(2.)[1] < 0.001, "{samples}: {:?}", of(2.));
        // Misses: of what is five times too much none, even with the least that is judged.
        assert!(of(5.)[0] > 0.999, "{samples}: {:?}", of(5.));
        // A candidate without an error goes on.
        assert_eq!(of(0.)[1], 1.);
    }
    assert!(verdicts(5_000, 2. * THRESHOLD)[0] > 0.99);
}

#[test]
fn what_is_written_of_it_is_true() {
    let table = table();
    println!("{table}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/architecture.md");
    let text = std::fs::read_to_string(path).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let begin = text.find("| true rate | answers in the window").expect("the table");
        let end = begin + text[begin..].find("\n\n").expect("its end") + 1;
        std::fs::write(path, format!("{}{table}{}", &text[..begin], &text[end..])).unwrap();
        return;
    }
    assert!(text.contains(&table), "run UPDATE_DOCS=1 cargo test --lib simulation");
}
