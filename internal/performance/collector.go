package performance

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"auditsink/metrics"
)

// Options say whose report it is.
type Options struct {
	// DB is what the database's statistics are read through, one part after the other, each in a read-only transaction of its own.
	DB      *pgxpool.Pool
	Metrics *metrics.Metrics
	Log     *zap.Logger
	// Worker names this process.
	Worker string
	// Every is the time between two reports.
	Every time.Duration
	// Slow is how long a statement takes on average, or a flush at its slowest, that the health component warns of.
	Slow time.Duration
	// Cached tells that there is a cache of queries.
	Cached bool
	// PoolMaxConns and ReadMaxConns are each worker's pools.
	PoolMaxConns, ReadMaxConns int
	// Database is what the database's machine has, as far as the settings tell.
	Database Machine
	// Reported is told of each report that was made in its time; nil: nobody.
	Reported func(context.Context, Report)
	// Now is this process's clock.
	Now func() time.Time
}

// Collector makes the report of one worker. It is safe for concurrent use.
type Collector struct {
	Options

	latest atomic.Pointer[Report] // nil before the first

	mu     sync.Mutex // guards before, and lets one look at a time at the database
	before *look      // the last one; nil before Run
}

// look is what was known at one moment.
type look struct {
	moment
	counters *counters
}

// New makes a collector that has looked at nothing yet.
func New(o Options) *Collector { return &Collector{Options: o} }

// Run makes a report every Options.Every until ctx ends: for whoever asks, for the log, and for /health.
func (c *Collector) Run(ctx context.Context) {
	if err := c.begin(ctx); err != nil {
		c.Log.Error("no performance reports", zap.Error(err))
		return
	}
	tick := time.NewTicker(c.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r, err := c.next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.Log.Warn("no performance report this time", zap.Error(err))
			continue
		}
		c.Log.Info("performance report", logFields(r)...)
		c.Metrics.Report(component, health(r, c.Slow))
		if c.Reported != nil {
			c.Reported(ctx, r)
		}
	}
}

// begin takes the first look, which the first window begins with.
func (c *Collector) begin(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.look(ctx, nil)
	if err != nil {
		return err
	}
	c.before = now
	c.Metrics.Report(component, metrics.Component{Status: metrics.Healthy, Details: map[string]any{"first_report": now.sample.At.Add(c.Every).UTC().Format(time.RFC3339)}})
	return nil
}

// next makes the report of the window since the last one, and begins another.
func (c *Collector) next(ctx context.Context) (Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.look(ctx, c.before.counters)
	if err != nil {
		return Report{}, err
	}
	r := c.report(c.before, now)
	c.latest.Store(&r)
	c.before = &look{moment: now.moment, counters: now.counters.inherit(c.before.counters)}
	return r, nil
}

// Report is the latest one. Before the first it is made of what there is of its window, which goes on.
func (c *Collector) Report(ctx context.Context) (Report, error) {
	if r := c.latest.Load(); r != nil {
		return *r, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.before == nil {
		return Report{}, fmt.Errorf("there is no performance report yet: the worker is starting")
	}
	now, err := c.look(ctx, c.before.counters)
	if err != nil {
		return Report{}, err
	}
	return c.report(c.before, now), nil
}

func (c *Collector) look(ctx context.Context, before *counters) (*look, error) {
	l := &look{}
	var err error
	if l.sample, err = c.Metrics.Sample(c.Now()); err != nil {
		return nil, err
	}
	l.gc = gcSeconds()
	l.counters = count(ctx, c.DB, c.Now, before, c.Slow)
	return l, nil
}

func (c *Collector) report(before, now *look) Report {
	r := figures(before.moment, now.moment, c.Cached)
	r.Worker = c.Worker
	r.Database = now.counters.database(before.counters)
	r.Optimizations = append([]Optimization{}, now.counters.done...)
	r.Advice, r.AdviceUnknown = []Advice{}, []string{}
	if now.counters.settings == nil {
		r.AdviceUnknown = append(r.AdviceUnknown, "the server's settings")
		return r
	}
	facts := c.facts(now.counters.settings, r.Database)
	facts.Replicas = max(facts.Replicas, int(now.sample.Max("fleet_replicas"))) // the leader knows of those without lanes too
	advice, unknown := Advise(facts)
	r.Advice, r.AdviceUnknown = append(r.Advice, advice...), append(r.AdviceUnknown, unknown...)
	return r
}

// facts are those of a report.
func (c *Collector) facts(s *serverSettings, d Database) Facts {
	f := Facts{Settings: s.Settings, PoolMaxConns: c.PoolMaxConns, ReadMaxConns: c.ReadMaxConns, Replicas: s.owners, Machine: c.Database}
	if s.here {
		m := thisMachine()
		if f.MemoryBytes == 0 {
			f.MemoryBytes = m.MemoryBytes
		}
		if f.Cores == 0 {
			f.Cores = m.Cores
		}
	}
	if w := d.WAL; w != nil {
		f.WALBytesPerSecond, f.WALBytes, f.FullPageImages = w.BytesPerSecond, w.Bytes, w.FullPageImages
	}
	if p := d.Checkpoints; p != nil {
		f.RequestedCheckpoints = p.Requested
	}
	if a := d.Activity; a != nil {
		f.Others, f.TempFiles, f.TempBytes, f.DatabaseBytes = a.Others, a.TempFiles, a.TempBytes, a.Bytes
	}
	if t := d.Tables; t != nil {
		f.LiveRows, f.DeadRows, f.Blocks = t.LiveRows, t.DeadRows, t.Hits+t.Reads
		if t.HitRatio != nil {
			f.HitRatio = *t.HitRatio
		}
	}
	return f
}

// logFields are a few figures of a report, always the same.
func logFields(r Report) []zap.Field {
	fields := []zap.Field{
		zap.Float64("seconds", r.Seconds), zap.Float64("records_per_second", r.Ingest.RecordsPerSecond), zap.Float64("rows_per_second", r.Ingest.RowsPerSecond),
		zap.Float64("quarantined", r.Ingest.Quarantined), zap.Float64("end_to_end_p99_seconds", r.Ingest.EndToEnd.P99), zap.Float64("lag_records_max", r.Ingest.LagRecordsMax),
		zap.Float64("lag_seconds_max", r.Ingest.LagSecondsMax), zap.Uint64("flushes", r.Flush.Count), zap.Float64("flush_p99_seconds", r.Flush.Duration.P99),
		zap.Float64("resident_bytes", r.Process.ResidentBytes), zap.Int("advice", len(r.Advice)), zap.Int("unread", len(r.Database.Unread)),
	}
	var heap, cache *float64
	if r.Database.Tables != nil {
		heap = r.Database.Tables.HitRatio
	}
	if r.Cache != nil {
		cache = r.Cache.Ratio
	}
	var slow int
	if r.Database.Statements != nil {
		slow = r.Database.Statements.Slow
	}
	var wal float64
	if r.Database.WAL != nil {
		wal = r.Database.WAL.BytesPerSecond
	}
	return append(fields, zap.Float64p("heap_hit_ratio", heap), zap.Float64p("cache_hit_ratio", cache), zap.Int("slow_statements", slow), zap.Float64("wal_bytes_per_second", wal))
}
