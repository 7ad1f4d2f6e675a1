//! What distributors admit together.

use rstest::rstest;

use super::*;

const LIMIT: u64 = 1000;
const BATCH: u64 = 20;

fn limits(ingestion_rate: u64, ingestion_burst: u64) -> Limits {
    Limits {
        ingestion_rate,
        ingestion_burst,
        ..Limits::default()
    }
}

#[test]
fn a_rate_admits_its_burst_and_then_as_much_as_time_gives() {
    let (rates, tenant) = (Rates::default(), TenantId::anonymous());
    let limits = limits(10, 30);
    let admit = |samples, secs| {
        let now = Duration::from_secs(secs);
        let asked = Asked {
            samples,
            distributors: 1,
            now,
        };
        rates.admit(&tenant, &limits, asked)
    };
    admit(30, 0).unwrap();
    let error = admit(20, 1).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("ingestion rate limit (10/s) exceeded"),
        "{error}"
    );
    assert!(matches!(error, Error::RateLimited { retry_after, .. } if retry_after == Duration::from_secs(1)));
    admit(20, 2).unwrap();
    // Larger than the burst: only when nothing is owed.
    assert!(admit(90, 3).is_err());
    admit(90, 5).unwrap();
    assert!(admit(1, 10).is_err());
}

#[rstest]
#[case::nothing_is_known((0.0, 0.0), 4, (100.0, 1.0))]
#[case::alone_below((30.0, 30.0), 4, (100.0, 1.0))]
#[case::alone_at_it((100.0, 100.0), 4, (100.0, 1.0))]
#[case::alone_beyond((110.0, 110.0), 4, (100.0, 1.0))]
#[case::what_is_left((30.0, 60.0), 4, (71.25, 0.5))]
#[case::shared((120.0, 160.0), 4, (76.25, 0.75))]
#[case::never_less_than_an_equal_share((1.0, 150.0), 4, (25.0, 0.25))]
#[case::as_many_as_send((50.0, 100.0), 2, (52.5, 0.5))]
fn shares(#[case] flow: (f64, f64), #[case] distributors: u64, #[case] (rate, of_burst): (f64, f64)) {
    let share = Share::of(100.0, flow, distributors);
    assert!((share.rate - rate).abs() < 1e-9, "{share:?}");
    assert!((share.of_burst - of_burst).abs() < 1e-9, "{share:?}");
}

/// Distributors that send to the same members.
struct Cluster {
    distributors: Vec<Rates>,
    /// How many there are, those to which nothing comes included.
    registered: u64,
    tells: bool,
    all: Rate,
    now: Duration,
}

impl Cluster {
    fn of(sending: usize, registered: u64) -> Self {
        Self {
            distributors: (0..sending).map(|_| Rates::default()).collect(),
            registered,
            tells: true,
            all: Rate::default(),
            now: Duration::ZERO,
        }
    }

    /// Lets so many samples per second come to each, and gives how many each admits per second.
    fn run(&mut self, coming: &[f64], seconds: u64) -> Vec<f64> {
        let (tenant, limits, step) = (TenantId::anonymous(), limits(LIMIT, 0), Duration::from_millis(50));
        let mut waiting = vec![0.0; coming.len()];
        let mut admitted = vec![0u64; coming.len()];
        let until = self.now + Duration::from_secs(seconds);
        while self.now < until {
            for (i, rates) in self.distributors.iter().enumerate() {
                waiting[i] += coming[i] * step.as_secs_f64();
                while waiting[i] >= BATCH as f64 {
                    waiting[i] -= BATCH as f64;
                    let asked = Asked {
                        samples: BATCH,
                        distributors: self.registered,
                        now: self.now,
                    };
                    if rates.admit(&tenant, &limits, asked).is_err() {
                        continue;
                    }
                    admitted[i] += BATCH;
                    rates.sent(&tenant, PartitionId(0), BATCH, self.now);
                    self.all.add(BATCH, self.now);
                    let told = if self.tells {
                        self.all.thousandths(self.now)
                    } else {
                        0
                    };
                    rates.told(&tenant, PartitionId(0), told, self.now);
                }
            }
            self.now += step;
        }
        admitted.iter().map(|n| *n as f64 / seconds as f64).collect()
    }
}

/// More than the limit comes, to so many of the registered distributors: it holds for all together, and each gets some of it.
#[rstest]
#[case(&[3000.0], 1, 1000.0, 1010.0, 1000.0)]
#[case(&[3000.0], 2, 1000.0, 1010.0, 1000.0)]
#[case(&[3000.0], 10, 1000.0, 1010.0, 1000.0)]
#[case(&[3000.0, 3000.0], 2, 980.0, 1100.0, 450.0)]
#[case(&[1200.0, 150.0], 2, 980.0, 1100.0, 145.0)]
#[case(&[3000.0, 3000.0], 10, 980.0, 1100.0, 100.0)]
#[case(&[500.0, 500.0, 500.0], 3, 980.0, 1100.0, 300.0)]
#[case(&[300.0; 10], 10, 980.0, 1100.0, 95.0)]
fn all_together_admit_the_limit(
    #[case] coming: &[f64],
    #[case] registered: u64,
    #[case] least: f64,
    #[case] most: f64,
    #[case] each: f64,
) {
    let mut cluster = Cluster::of(coming.len(), registered);
    cluster.run(coming, 120);
    let admitted = cluster.run(coming, 120);
    let sum: f64 = admitted.iter().sum();
    assert!((least..=most).contains(&sum), "{sum} {admitted:?}");
    assert!(admitted.iter().all(|one| *one >= each), "{admitted:?}");
}

#[rstest]
#[case(&[900.0], 10)]
#[case(&[700.0, 200.0], 2)]
#[case(&[10.0, 10.0, 900.0], 3)]
fn below_the_limit_nothing_is_refused(#[case] coming: &[f64], #[case] registered: u64) {
    let mut cluster = Cluster::of(coming.len(), registered);
    for (one, came) in cluster.run(coming, 200).iter().zip(coming) {
        assert!((one - came).abs() < 1.0, "{one} of {came}");
    }
    // Another one gets more, and the others less.
    let turned: Vec<f64> = coming.iter().rev().copied().collect();
    cluster.run(&turned, 60);
    for (one, came) in cluster.run(&turned, 60).iter().zip(&turned) {
        assert!((one - came).abs() < 1.0, "{one} of {came}");
    }
}

#[test]
fn i16_with_members_of_an_earlier_version_each_has_all_of_the_limit() {
    let mut cluster = Cluster::of(2, 2);
    cluster.tells = false;
    for one in cluster.run(&[3000.0, 3000.0], 100) {
        assert!((1000.0..=1010.0).contains(&one), "{one}");
    }
}

#[test]
fn what_has_no_limit_or_sends_no_more_is_forgotten() {
    let (rates, tenant) = (Rates::default(), TenantId::anonymous());
    let other = TenantId::new("other").unwrap();
    let admit = |tenant: &TenantId, rate, secs| {
        let asked = Asked {
            samples: 1,
            distributors: 1,
            now: Duration::from_secs(secs),
        };
        rates.admit(tenant, &limits(rate, 0), asked).unwrap();
    };
    let remembered = || rates.tenants.lock().limited.len();
    admit(&tenant, 0, 0);
    assert_eq!(remembered(), 0);
    admit(&tenant, 5, 0);
    admit(&other, 5, 3000);
    assert_eq!(remembered(), 2);
    admit(&other, 5, 4000);
    assert_eq!(remembered(), 1);
    admit(&other, 0, 4000);
    assert_eq!(remembered(), 0);
}
