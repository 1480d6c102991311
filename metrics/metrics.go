// Package metrics holds the collectors that Prometheus scrapes. Names and labels are fixed by
// DESIGN.md §9. No label ever carries event content.
package metrics

import (
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the collectors of one worker. All methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	// RecordsConsumed counts the records taken over from Kafka.
	RecordsConsumed prometheus.Counter
	// RowsInserted counts the rows in committed batches.
	RowsInserted prometheus.Counter
	// Quarantined counts the records in committed batches that could not become rows, by reason.
	Quarantined *prometheus.CounterVec
	// Gaps counts the ranges of offsets that the broker no longer had, or that were skipped at the start.
	Gaps prometheus.Counter
	// FlushSeconds is the duration of a batch's transaction, retries included.
	FlushSeconds prometheus.Histogram
	// FlushRows is the number of rows a batch stored.
	FlushRows prometheus.Histogram
	// EndToEndSeconds is the time from a record's timestamp to the commit of its batch.
	EndToEndSeconds prometheus.Histogram
	// FlushRetries counts the failed attempts to store a batch, by class of error.
	FlushRetries *prometheus.CounterVec
	// Fenced counts the batches that were refused because another worker had claimed the lane.
	Fenced prometheus.Counter
	// Rewound counts the lanes found set back in the database: a failover or a restore had lost transactions.
	Rewound prometheus.Counter
	// LanesOwned and LanesHalted count this worker's lanes.
	LanesOwned, LanesHalted prometheus.Gauge
	// BufferedBytes is what lanes hold in memory and have not stored.
	BufferedBytes prometheus.Gauge
	// PoolAcquireSeconds is how long a connection was waited for.
	PoolAcquireSeconds prometheus.Histogram
	// TablePartitions counts the partitions of audit_log.
	TablePartitions prometheus.Gauge
	// PartitionsReadyUntil is the upper bound of the last partition without a hole before it, in seconds since 1970.
	PartitionsReadyUntil prometheus.Gauge
	// TableBytes and IndexBytes are the sizes of all partitions, those in their grace period included; PartitionsDetached counts the latter. The
	// leader tells them, every other worker 0.
	TableBytes, IndexBytes, PartitionsDetached prometheus.Gauge
	// IndexesToBuild counts the deferred indexes that are due; IndexesToBuildSince is since when the first of them has been, in seconds since 1970, 0 where there are none. The
	// leader tells them, every other worker 0.
	IndexesToBuild, IndexesToBuildSince prometheus.Gauge
	// PartitionsDropped counts the partitions that this worker dropped as the leader, RowsExpired the rows that it removed one by one.
	PartitionsDropped, RowsExpired prometheus.Counter
	// PartitionsAhead counts the whole intervals after the current one that have partitions, without a hole before them.
	PartitionsAhead prometheus.Gauge
	// MaintenanceLastSuccess is when a leader, whichever worker that was, last finished a round of maintenance without an error, in seconds since 1970; where none ever
	// has, when this worker began.
	MaintenanceLastSuccess prometheus.Gauge
	// Leader is 1 while this worker does maintenance; LeaderSince is since when, in seconds since 1970, and 0 while it doesn't.
	Leader, LeaderSince prometheus.Gauge
	// KafkaConnectFailures counts the connects to brokers that failed.
	KafkaConnectFailures prometheus.Counter
	// PoolWaiting is how many wait for a connection of the pool, PoolFailures counts those who got none.
	PoolWaiting  prometheus.Gauge
	PoolFailures prometheus.Counter
	// QueryPoolWaiting and QueryPoolFailures are the same of the pool for reads.
	QueryPoolWaiting  prometheus.Gauge
	QueryPoolFailures prometheus.Counter
	// QuerySeconds is the duration of a read in the database, the wait for a connection included, by the name of the query; QueryRows counts the rows
	// they returned, QueryFailures those that failed, and SlowQueries those that took as long as SLOW_QUERY or longer.
	QuerySeconds                          *prometheus.HistogramVec
	QueryRows, QueryFailures, SlowQueries *prometheus.CounterVec
	// QueryAcquireSeconds is how long reads waited for a connection.
	QueryAcquireSeconds prometheus.Histogram
	// QueryCacheRequests counts the reads that asked the cache, by result: hit, miss, shared (with one under way) or error.
	QueryCacheRequests *prometheus.CounterVec
	// Optimizations counts what was done by itself to stay fast, by rule.
	Optimizations *prometheus.CounterVec
	// Notifications counts the alerts sent to the webhook, by result: sent or failed.
	Notifications *prometheus.CounterVec
	// AlertActive is 1 for an alert that holds, by its name.
	AlertActive *prometheus.GaugeVec
	// FleetReplicas counts the replicas whose figures the leader finds in Redis. Every other worker tells 0, and so does a leader without Redis.
	FleetReplicas prometheus.Gauge

	health                 health
	lagRecords, lagSeconds *prometheus.GaugeVec
}

const namespace = "auditsink"

// New makes the collectors and registers them with a registry of their own, beside those of the Go
// runtime and the process. The counters by reason start at 0 for all the reasons given.
func New[Reason fmt.Stringer](version string, reasons []Reason) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
	}
	laneGauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, []string{"topic", "partition"})
	}
	counterBy := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, []string{label})
	}
	histogramBy := func(name, help, label string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}, []string{label})
	}
	seconds := prometheus.ExponentialBucketsRange(0.001, 60, 18)
	m := &Metrics{
		registry:               prometheus.NewRegistry(),
		RecordsConsumed:        counter("records_consumed_total", "Records taken over from Kafka."),
		RowsInserted:           counter("rows_inserted_total", "Rows in committed batches."),
		Quarantined:            counterBy("quarantined_total", "Records in committed batches that went to quarantine.", "reason"),
		Gaps:                   counter("gaps_total", "Recorded ranges of offsets that were not there to be taken."),
		FlushSeconds:           histogram("flush_duration_seconds", "Duration of storing a batch, retries included.", seconds),
		FlushRows:              histogram("flush_rows", "Rows stored by a batch.", prometheus.ExponentialBuckets(1, 4, 10)),
		EndToEndSeconds:        histogram("end_to_end_latency_seconds", "Time from a record's timestamp to the commit of its batch.", prometheus.ExponentialBucketsRange(0.005, 3600, 22)),
		FlushRetries:           counterBy("flush_retries_total", "Failed attempts to store a batch.", "class"),
		Fenced:                 counter("fenced_total", "Batches refused because another worker had claimed the lane."),
		Rewound:                counter("rewound_total", "Lanes whose position the database had lost, and whose records were fetched again."),
		LanesOwned:             gauge("lanes_owned", "Lanes assigned to this worker."),
		LanesHalted:            gauge("lanes_halted", "Lanes of this worker that stand still until an operator acts."),
		BufferedBytes:          gauge("buffered_bytes", "Bytes of records held in memory and not stored yet."),
		PoolAcquireSeconds:     histogram("db_pool_acquire_seconds", "Wait for a database connection.", prometheus.ExponentialBucketsRange(0.00001, 30, 18)),
		TablePartitions:        gauge("table_partitions", "Partitions of audit_log."),
		PartitionsReadyUntil:   gauge("partitions_ready_until_timestamp_seconds", "End of the last partition without a hole before it."),
		TableBytes:             gauge("table_bytes", "Size of all partitions without their indexes; 0 while this worker doesn't lead."),
		IndexBytes:             gauge("index_bytes", "Size of the indexes of all partitions; 0 while this worker doesn't lead."),
		PartitionsDetached:     gauge("partitions_detached", "Partitions detached and not dropped yet; 0 while this worker doesn't lead."),
		IndexesToBuild:         gauge("indexes_to_build", "Deferred indexes of ended partitions that are due and not built yet; 0 while this worker doesn't lead."),
		IndexesToBuildSince:    gauge("indexes_to_build_since_timestamp_seconds", "Since when the first deferred index has been due; 0 where none is, and while this worker doesn't lead."),
		PartitionsDropped:      counter("partitions_dropped_total", "Expired partitions dropped by this worker."),
		RowsExpired:            counter("rows_expired_total", "Expired rows removed one by one by this worker."),
		MaintenanceLastSuccess: gauge("maintenance_last_success_timestamp_seconds", "When a leader last finished a round of maintenance without an error, by the database; this worker's start where none ever has."),
		PartitionsAhead:        gauge("partitions_ahead", "Whole intervals after the current one that have partitions."),
		KafkaConnectFailures:   counter("kafka_connect_failures_total", "Connects to brokers that failed."),
		Leader:                 gauge("leader", "1 while this worker does maintenance."),
		LeaderSince:            gauge("leader_since_timestamp_seconds", "Since when this worker does maintenance, 0 while it doesn't."),
		PoolWaiting:            gauge("db_pool_waiting", "Waiting for a database connection of the pool now."),
		PoolFailures:           counter("db_pool_acquire_failures_total", "Waits for a database connection that got none."),
		QueryPoolWaiting:       gauge("query_pool_waiting", "Reads waiting for a database connection of their pool now."),
		QueryPoolFailures:      counter("query_pool_acquire_failures_total", "Waits of reads for a database connection that got none."),
		QuerySeconds:           histogramBy("query_duration_seconds", "Duration of a read in the database.", "query", seconds),
		QueryRows:              counterBy("query_rows_total", "Rows returned by reads.", "query"),
		QueryFailures:          counterBy("query_failures_total", "Reads that failed.", "query"),
		SlowQueries:            counterBy("slow_queries_total", "Reads that took longer than AUDITSINK_SLOW_QUERY.", "query"),
		QueryAcquireSeconds:    histogram("query_acquire_seconds", "Wait of a read for a database connection.", prometheus.ExponentialBucketsRange(0.00001, 30, 18)),
		QueryCacheRequests:     counterBy("query_cache_requests_total", "Reads that asked the cache.", "result"),
		Optimizations:          counterBy("optimizations_total", "What was done by itself to stay fast.", "rule"),
		Notifications:          counterBy("alert_notifications_total", "Alerts sent to the webhook.", "result"),
		AlertActive:            prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "alert_active", Help: "1 for an alert that holds."}, []string{"alert"}),
		FleetReplicas:          gauge("fleet_replicas", "Replicas whose figures are in Redis; 0 while this worker doesn't lead."),
		lagRecords:             laneGauge("consumer_lag_records", "Records between the end of the log and the stored position."),
		lagSeconds:             laneGauge("consumer_lag_seconds", "Age of the oldest record that is not stored yet."),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info", Help: "Always 1; the labels say what runs."}, []string{"version", "goversion"})
	build.WithLabelValues(version, runtime.Version()).Set(1)
	for _, rule := range Rules() {
		m.AlertActive.WithLabelValues(rule.Name) // there from the start: an alert that can't be seen isn't silent
	}
	for _, result := range []string{"hit", "miss", "shared", "error"} {
		m.QueryCacheRequests.WithLabelValues(result)
	}
	for _, rule := range []string{"cache", "analyze", "vacuum"} {
		m.Optimizations.WithLabelValues(rule)
	}
	for _, result := range []string{"sent", "failed"} {
		m.Notifications.WithLabelValues(result)
	}
	for _, reason := range reasons {
		m.Quarantined.WithLabelValues(reason.String())
	}
	m.registry.MustRegister(m.RecordsConsumed, m.RowsInserted, m.Quarantined, m.Gaps, m.FlushSeconds, m.FlushRows,
		m.EndToEndSeconds, m.FlushRetries, m.Fenced, m.Rewound, m.LanesOwned, m.LanesHalted, m.BufferedBytes, m.PoolAcquireSeconds,
		m.TablePartitions, m.PartitionsReadyUntil, m.TableBytes, m.IndexBytes, m.PartitionsDetached, m.IndexesToBuild, m.IndexesToBuildSince, m.PartitionsDropped, m.RowsExpired,
		m.MaintenanceLastSuccess, m.PartitionsAhead, m.KafkaConnectFailures, m.Leader, m.LeaderSince, m.PoolWaiting, m.PoolFailures, m.QueryPoolWaiting, m.QueryPoolFailures, m.QuerySeconds, m.QueryRows, m.QueryFailures, m.SlowQueries,
		m.QueryAcquireSeconds, m.QueryCacheRequests, m.Optimizations, m.Notifications, m.AlertActive, m.FleetReplicas, m.lagRecords, m.lagSeconds, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// SetLag publishes how far a lane is behind: in records, and as the age of its oldest record not yet stored.
func (m *Metrics) SetLag(topic string, partition int32, records int64, age time.Duration) {
	p := strconv.Itoa(int(partition))
	m.lagRecords.WithLabelValues(topic, p).Set(float64(records))
	m.lagSeconds.WithLabelValues(topic, p).Set(age.Seconds())
}

// DropLane removes the series of a lane that is no longer this worker's.
func (m *Metrics) DropLane(topic string, partition int32) {
	p := strconv.Itoa(int(partition))
	m.lagRecords.DeleteLabelValues(topic, p)
	m.lagSeconds.DeleteLabelValues(topic, p)
}

// PoolState is how many connections a pool has, by what they are doing.
type PoolState struct{ Idle, Acquired, Constructing, Max int32 }

// WatchPool publishes the connections of the pool, asked for at each scrape.
func (m *Metrics) WatchPool(state func() PoolState) {
	m.watchPool("db_pool_connections", "Database connections of the pool.", state)
}

// WatchQueryPool publishes the connections of the pool for reads, asked for at each scrape.
func (m *Metrics) WatchQueryPool(state func() PoolState) {
	m.watchPool("query_pool_connections", "Database connections of the pool for reads.", state)
}

func (m *Metrics) watchPool(metric, help string, state func() PoolState) {
	for name, read := range map[string]func(PoolState) int32{
		"idle":         func(s PoolState) int32 { return s.Idle },
		"acquired":     func(s PoolState) int32 { return s.Acquired },
		"constructing": func(s PoolState) int32 { return s.Constructing },
		"max":          func(s PoolState) int32 { return s.Max },
	} {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: namespace, Name: metric, Help: help, ConstLabels: prometheus.Labels{"state": name},
		}, func() float64 { return float64(read(state())) }))
	}
}

// Handler serves the metrics in Prometheus's exposition formats.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}
