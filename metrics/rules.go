package metrics

import (
	"strings"
	"time"
)

// Rule says when one alert holds. It judges the metrics of one worker over a window; Prometheus judges the same in PromQL.
type Rule struct {
	// Name is the value of the label alert, and what the rules file calls it.
	Name string
	// Severity is Warning or Critical.
	Severity Status
	// Summary says what is the matter, and Remedy what to do about it.
	Summary, Remedy string
	// Value says what the value is that is compared with the threshold, and in what it is measured.
	Value string
	// PromQL is the value as Prometheus computes it, with $window where the window goes.
	PromQL string
	// Threshold is what the value must exceed for the alert to hold; where Below is set, what it must fall below.
	Threshold float64
	Below     bool
	// Window is how far back the value looks; 0 where it is of the moment.
	Window time.Duration
	// For is how long that must have been so before the alert is raised.
	For time.Duration
	// CoolDown is how long nothing is told of it again after it was told to be resolved; the metric is true all the while.
	CoolDown time.Duration
	// Everywhere says that it is about what all workers have in common, so that each of them raises it.
	Everywhere bool
	// Off says that it is never raised.
	Off bool

	read  func(Sample) figures
	judge func(window) (value float64, known bool)
}

// The alerts that there are.
const (
	AlertLagGrowing         = "lag_growing"
	AlertFlushFailing       = "flush_failing"
	AlertLaneHalted         = "lane_halted"
	AlertSlowQueries        = "slow_queries"
	AlertLowHitRatio        = "low_hit_ratio"
	AlertPoolStarved        = "pool_starved"
	AlertConnectionFailures = "connection_failures"
	AlertPartitionsFuture   = "partitions_future"
	AlertMaintenanceStale   = "maintenance_stale"
	AlertQuarantineRising   = "quarantine_rising"
	AlertHashMismatches     = "hash_mismatches"
	AlertGaps               = "gaps"
)

// leastGets is from how many gets on their ratio of hits says something.
const leastGets = 50

// Rules are all of them, as they are without a rules file. docs/alerts.md and deploy/prometheus/alerts.yaml are made from this table.
func Rules() []Rule {
	return []Rule{
		{
			Name: AlertLagGrowing, Severity: Warning,
			Summary: "events wait longer and longer to be stored", Remedy: "see /health and the log for what holds ingest up; where nothing does, start more workers, or find what slows Postgres down (/v1/performance)",
			Value: "seconds that the oldest event of a lane has waited, of which no fewer wait than a window ago", Threshold: 60, Window: 5 * time.Minute, For: 2 * time.Minute, CoolDown: 10 * time.Minute,
			PromQL: `max without (topic, partition) (auditsink_consumer_lag_seconds and auditsink_consumer_lag_records >= auditsink_consumer_lag_records offset $window)`,
			read:   readLag, judge: judgeLag,
		},
		{
			Name: AlertFlushFailing, Severity: Critical,
			Summary: "batches can't be stored", Remedy: "see the log for what Postgres answers, and whether it is up, has room and takes writes; nothing is lost, they are tried again without end",
			Value: "failed attempts to store a batch within the window", Threshold: 3, Window: 5 * time.Minute, CoolDown: 10 * time.Minute,
			PromQL: `sum without (class) (increase(auditsink_flush_retries_total{class!~"row|no_partition"}[$window]))`,
			read:   readFailures, judge: increase,
		},
		{
			Name: AlertLaneHalted, Severity: Critical,
			Summary: "lanes stand still until somebody acts", Remedy: "`auditsink lanes list` says why; mend that, then `auditsink lanes accept`",
			Value: "lanes that have halted", CoolDown: 5 * time.Minute,
			PromQL: `auditsink_lanes_halted`,
			read:   sums("lanes_halted"), judge: latest,
		},
		{
			Name: AlertSlowQueries, Severity: Warning,
			Summary: "reads are slow", Remedy: "see the log for their plans, and /v1/performance for indexes, statistics and memory",
			Value: "reads within the window that took AUDITSINK_SLOW_QUERY or longer", Threshold: 10, Window: 5 * time.Minute, For: time.Minute, CoolDown: 30 * time.Minute,
			PromQL: `sum without (query) (increase(auditsink_slow_queries_total[$window]))`,
			read:   sums("slow_queries_total"), judge: increase,
		},
		{
			Name: AlertLowHitRatio, Severity: Warning,
			Summary: "the cache of queries rarely has the answer", Remedy: "see whether Redis evicts (maxmemory), whether rows are removed all the time, or whether questions are hardly ever asked twice: then AUDITSINK_CACHE_TTL=0",
			Value: "share of hits among the window's gets that Redis answered, at least 50", Threshold: 0.2, Below: true, Window: 15 * time.Minute, For: 15 * time.Minute, CoolDown: time.Hour,
			PromQL: `(sum without (result) (increase(auditsink_query_cache_requests_total{result="hit"}[$window])) / sum without (result) (increase(auditsink_query_cache_requests_total{result=~"hit|miss"}[$window])))` +
				` and sum without (result) (increase(auditsink_query_cache_requests_total{result=~"hit|miss"}[$window])) >= 50`,
			read: readGets, judge: judgeGets,
		},
		{
			Name: AlertPoolStarved, Severity: Warning,
			Summary: "database connections are waited for", Remedy: "raise AUDITSINK_POOL_MAX_CONNS (and max_connections with it), or find what keeps connections busy: locks, slow storage",
			Value: "how many wait for a connection of the ingest pool, on average over the window", Threshold: 0.5, Window: time.Minute, For: time.Minute, CoolDown: 10 * time.Minute,
			PromQL: `avg_over_time(auditsink_db_pool_waiting[$window])`,
			read:   sums("db_pool_waiting"), judge: mean,
		},
		{
			Name: AlertConnectionFailures, Severity: Critical,
			Summary: "Postgres or Kafka can't be reached", Remedy: "see the log for which it is and why; check that the server is up, and what lies between",
			Value: "waits for a connection of the ingest pool that got none, and failed connects to brokers, within the window", Threshold: 3, Window: 5 * time.Minute, CoolDown: 10 * time.Minute,
			PromQL: `increase(auditsink_db_pool_acquire_failures_total[$window]) + increase(auditsink_kafka_connect_failures_total[$window])`,
			read:   sums("db_pool_acquire_failures_total", "kafka_connect_failures_total"), judge: increase,
		},
		{
			Name: AlertPartitionsFuture, Severity: Critical, Everywhere: true,
			Summary: "the partitions ahead run out", Remedy: "`auditsink partitions apply --execute`, and see in the leader's log why it creates none",
			Value: "whole intervals after the current one that have partitions", Threshold: 2, Below: true, For: 15 * time.Minute, CoolDown: time.Hour, // a new interval begins before the leader's next round
			PromQL: `min without (instance, pod) (auditsink_partitions_ahead and auditsink_partitions_ready_until_timestamp_seconds > 0)`,
			read:   readAhead, judge: judgeAhead,
		},
		{
			Name: AlertMaintenanceStale, Severity: Warning, Everywhere: true,
			Summary: "nobody maintains the partitions", Remedy: "see in the leader's log why its rounds fail, or why nobody leads (`auditsink partitions stats`)",
			Value: "seconds since a leader last finished a round without an error", Threshold: 3600, For: 10 * time.Minute, CoolDown: time.Hour,
			PromQL: `time() - max without (instance, pod) (auditsink_maintenance_last_success_timestamp_seconds)`,
			read:   readMaintained, judge: latest,
		},
		{
			Name: AlertQuarantineRising, Severity: Warning,
			Summary: "records go to quarantine", Remedy: "`auditsink quarantine list` says why; tell the producers, then `auditsink quarantine redrive` or `discard`",
			Value: "records quarantined within the window", Threshold: 10, Window: 15 * time.Minute, CoolDown: 30 * time.Minute,
			PromQL: `sum without (reason) (increase(auditsink_quarantined_total[$window]))`,
			read:   sums("quarantined_total"), judge: increase,
		},
		{
			Name: AlertHashMismatches, Severity: Critical,
			Summary: "events came with a hash that isn't theirs", Remedy: "somebody changed them on the way, or a producer computes it wrong: `auditsink quarantine list --reason hash_mismatch`",
			Value: "records quarantined for that within the window", Window: 15 * time.Minute, CoolDown: 30 * time.Minute,
			PromQL: `increase(auditsink_quarantined_total{reason="hash_mismatch"}[$window])`,
			read:   readMismatches, judge: increase,
		},
		{
			Name: AlertGaps, Severity: Critical,
			Summary: "records were gone from Kafka before they were stored, or were skipped", Remedy: "see audit_gap for which; raise the topic's retention above the longest outage",
			Value: "gaps found within the window", Window: 15 * time.Minute, CoolDown: 30 * time.Minute,
			PromQL: `increase(auditsink_gaps_total[$window])`,
			read:   sums("gaps_total"), judge: increase,
		},
	}
}

// holds tells whether a value is on the wrong side of the threshold.
func (r *Rule) holds(value float64) bool {
	if r.Below {
		return value < r.Threshold
	}
	return value > r.Threshold
}

// figures are what a rule reads from a sample.
type figures map[string]float64

// look is what one rule read at one time.
type look struct {
	at time.Time
	figures
}

// window is what a rule read as far back as it looks, oldest first; the last is of now. full says that the first is as old as the window is long.
type window struct {
	looks []look
	full  bool
}

func (w window) last() figures { return w.looks[len(w.looks)-1].figures }

// sums reads metrics, each added up over its series.
func sums(names ...string) func(Sample) figures {
	return func(s Sample) figures {
		f := figures{}
		for _, name := range names {
			f[name] = s.Sum(name)
		}
		return f
	}
}

// latest is what a gauge says now.
func latest(w window) (float64, bool) { return w.last().total(), true }

func (f figures) total() float64 {
	sum := 0.0
	for _, v := range f {
		sum += v
	}
	return sum
}

// mean is what a gauge said on average.
func mean(w window) (float64, bool) {
	sum := 0.0
	for _, l := range w.looks {
		sum += l.total()
	}
	return sum / float64(len(w.looks)), true
}

// increase is by how much counters have grown, one that began anew counting from 0.
func increase(w window) (float64, bool) {
	sum := 0.0
	for name := range w.last() {
		sum += w.increase(name)
	}
	return sum, true
}

func (w window) increase(name string) float64 {
	sum := 0.0
	for i := 1; i < len(w.looks); i++ {
		before, after := w.looks[i-1].figures[name], w.looks[i].figures[name]
		if after < before {
			before = 0
		}
		sum += after - before
	}
	return sum
}

// readFailures leaves out what the next attempt mends: a late event's partition is made, and a record that the database refuses goes to quarantine.
// Where no partition can be made, that counts by its own class.
func readFailures(s Sample) figures {
	by := s.By("flush_retries_total", "class")
	delete(by, "row")
	delete(by, "no_partition")
	return by
}

const lagAge, lagRecords = "s ", "n "

// readLag reads age and length of each lane's lag.
func readLag(s Sample) figures {
	f := figures{}
	for kind, name := range map[string]string{lagAge: "consumer_lag_seconds", lagRecords: "consumer_lag_records"} {
		for _, metric := range s.series(name, nil) {
			lane := kind
			for _, l := range metric.GetLabel() {
				lane += l.GetValue() + "/"
			}
			f[lane] = value(metric)
		}
	}
	return f
}

// judgeLag is the age of the worst lane whose lag hasn't shrunk. One that came within the window isn't judged: a worker that has just taken over a long lag
// may well be working it off.
func judgeLag(w window) (float64, bool) {
	worst := 0.0
	for name, records := range w.last() {
		lane, ok := strings.CutPrefix(name, lagRecords)
		if before, there := w.looks[0].figures[name]; ok && there && w.full && records >= before {
			worst = max(worst, w.last()[lagAge+lane])
		}
	}
	return worst, true
}

func readGets(s Sample) figures {
	by := s.By("query_cache_requests_total", "result")
	return figures{"hit": by["hit"], "miss": by["miss"]}
}

func judgeGets(w window) (float64, bool) {
	hits, misses := w.increase("hit"), w.increase("miss")
	if hits+misses < leastGets {
		return 0, false
	}
	return hits / (hits + misses), true
}

func readAhead(s Sample) figures {
	return figures{"ahead": s.Sum("partitions_ahead"), "until": s.Sum("partitions_ready_until_timestamp_seconds")}
}

// judgeAhead knows nothing before the partitions were looked at for the first time.
func judgeAhead(w window) (float64, bool) { return w.last()["ahead"], w.last()["until"] > 0 }

// readMaintained is how long ago the partitions were maintained.
func readMaintained(s Sample) figures {
	at := s.Sum("maintenance_last_success_timestamp_seconds")
	if at == 0 {
		return figures{}
	}
	return figures{"age": max(float64(s.At.UnixMicro())/1e6-at, 0)}
}

func readMismatches(s Sample) figures {
	return figures{"mismatches": s.Sum("quarantined_total", Label{Name: "reason", Value: "hash_mismatch"})}
}
