package partitions

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"auditsink/metrics"
)

const (
	// component is what /health calls us.
	component = "partitions"
	// statsEvery is how old sizes and statistics may become: reading them opens each partition.
	statsEvery = 5 * time.Minute
)

// Watch tells metrics and health how the partitions are. Every worker has one, whether it leads or not: that nobody creates partitions matters most
// while nobody leads. It is safe for concurrent use.
type Watch struct {
	db        *pgxpool.Pool
	metrics   *metrics.Metrics
	schedule  Schedule
	retention Retention

	mu    sync.Mutex // guards what follows, and keeps an older look from being told after a newer one
	last  Survey     // the latest look at the catalog; its Now is zero before the first
	round time.Time  // when a leader last finished a round without an error, by the database's clock; zero if none ever has
	// roundSeen is when we first saw that, or when this worker began.
	roundSeen time.Time
	latest    Survey // the latest look at everything, while this worker leads; its StatsAt is zero otherwise
}

// NewWatch makes a watch that has told nothing yet but that maintenance is as good as done now: whatever the database says later, this worker can't have missed it
// for longer.
func NewWatch(db *pgxpool.Pool, m *metrics.Metrics, schedule Schedule, retention Retention) *Watch {
	m.MaintenanceLastSuccess.SetToCurrentTime()
	return &Watch{db: db, metrics: m, schedule: schedule, retention: retention, roundSeen: time.Now()}
}

// Publish looks at the catalog alone, which is cheap, and tells how things are. Where it can't be looked at, the last look is judged anew: the future
// runs out all the same.
func (w *Watch) Publish(ctx context.Context, now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.publish(ctx, now)
}

// PublishStatistics is Publish for the leader: it looks at sizes and statistics too, where the last such look is some minutes old. That look may take long, and keeps
// no Publish waiting: a lane waits for one after a partition was made for it.
func (w *Watch) PublishStatistics(ctx context.Context, now time.Time) error {
	w.mu.Lock()
	age := now.Sub(w.latest.StatsAt)
	w.mu.Unlock()
	var s Survey
	var failed error
	if age < 0 || age >= statsEvery {
		s, failed = Inspect(ctx, w.db, now, w.retention)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if failed == nil && !s.StatsAt.IsZero() {
		w.latest = s
	}
	return errors.Join(failed, w.publish(ctx, now)) // whatever the sizes are, the alert must be told
}

// StandDown is told by a worker that no longer leads: the figures of all replicas together are the leader's.
func (w *Watch) StandDown() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.latest = Survey{}
	w.sizes()
}

func (w *Watch) publish(ctx context.Context, now time.Time) error {
	s, err := Glance(ctx, w.db, now)
	if err == nil {
		w.last = s
	} else if w.last.Now.IsZero() {
		return err
	}
	s = w.last
	s.Now, s.Stats, s.StatsAt = now, w.latest.Stats, w.latest.StatsAt
	s.Problem = w.latest.Problem
	ready := ReadyUntil(now, s.Catalog.Partitions)
	w.metrics.TablePartitions.Set(float64(len(s.Catalog.Partitions)))
	w.metrics.PartitionsReadyUntil.Set(float64(ready.Unix()))
	w.metrics.PartitionsAhead.Set(float64(Ahead(now, s.Catalog.Partitions, w.schedule.Interval)))
	if err == nil { // otherwise it stays where it was, and becomes older
		w.maintained(s.Leader, now)
	}
	w.sizes()

	c := health(s, w.schedule, w.retention.Enforce)
	if err != nil {
		c.Details["error"] = fmt.Sprintf("this is how it was at %s; it can't be looked at now", stamp(w.last.Now))
		c.Status = worse(c.Status, metrics.Warning)
	}
	w.metrics.Report(component, c)
	return err
}

// maintained publishes when a leader last finished a round, in our time: how long ago that was the database's clock says, which also set it, so that it doesn't matter
// by how much the two differ. Where that clock was set back, it would be young for ever: so it is no younger than we have seen it unchanged, by our monotonic clock.
func (w *Watch) maintained(l Leader, now time.Time) {
	if !l.Maintained.Equal(w.round) {
		w.round, w.roundSeen = l.Maintained, time.Now()
	}
	age := time.Since(w.roundSeen)
	if !l.Maintained.IsZero() {
		age = max(age, time.Duration(l.maintainedAgo*float64(time.Second)))
	}
	w.metrics.MaintenanceLastSuccess.Set(float64(now.Add(-age).UnixMilli()) / 1e3)
}

// sizes tells those of the latest look at everything; 0 where this worker doesn't lead.
func (w *Watch) sizes() {
	all := total(w.latest.Stats)
	w.metrics.TableBytes.Set(float64(all.TableBytes))
	w.metrics.IndexBytes.Set(float64(all.IndexBytes))
	w.metrics.PartitionsDetached.Set(float64(all.Detached))
	n, since := w.latest.ToBuild(w.schedule.IndexGrace)
	w.metrics.IndexesToBuild.Set(float64(n))
	w.metrics.IndexesToBuildSince.Set(0)
	if n > 0 {
		w.metrics.IndexesToBuildSince.Set(float64(since.Unix()))
	}
}

// Totals are sums over partitions. Rows are estimates, and those of partitions never analyzed are missing.
type Totals struct {
	Partitions int   `json:"partitions"` // of audit_log; those that are detached come below
	Detached   int   `json:"detached"`
	Rows       int64 `json:"rows"`
	TableBytes int64 `json:"table_bytes"`
	IndexBytes int64 `json:"index_bytes"`
	TotalBytes int64 `json:"total_bytes"`
	DeadRows   int64 `json:"dead_rows"`
}

// Totals sums the statistics up.
func (s Survey) Totals() Totals { return total(s.Stats) }

func total(stats []Stat) Totals {
	var t Totals
	for _, p := range stats {
		if p.Phase == PhaseDetached {
			t.Detached++
		} else {
			t.Partitions++
		}
		if p.Rows != nil {
			t.Rows += *p.Rows
		}
		t.TableBytes += p.TableBytes
		t.IndexBytes += p.IndexBytes
		t.TotalBytes += p.TotalBytes
		t.DeadRows += p.DeadRows
	}
	return t
}

// health is what /health says of the partitions.
func health(s Survey, schedule Schedule, enforce bool) metrics.Component {
	c := metrics.Component{Status: metrics.Healthy, Details: map[string]any{
		"partitions":  len(s.Catalog.Partitions),
		"ready_until": stamp(ReadyUntil(s.Now, s.Catalog.Partitions)),
		"interval":    interval(schedule),
		"leader":      s.Leader,
		"ways_out":    len(s.WaysOut),
		"enforce":     enforce,
	}}
	var detaching []string
	for _, b := range s.Catalog.Partitions {
		if b.Detaching {
			detaching = append(detaching, b.Name)
		}
	}
	if len(detaching) > 0 {
		c.Details["detaching"] = detaching
	}
	if !s.StatsAt.IsZero() {
		c.Details["totals"] = s.Totals()
		c.Details["statistics_at"] = stamp(s.StatsAt)
		if n, since := s.ToBuild(schedule.IndexGrace); n > 0 {
			c.Details["indexes_to_build"], c.Details["indexes_to_build_since"] = n, stamp(since)
		}
		if next := s.NextDrop(); next != nil {
			c.Details["next_drop"] = map[string]string{"partition": next.Name, "not_before": stamp(next.gone()), "why": next.Why}
		}
	}
	for _, a := range Advise(s, schedule, enforce) {
		c.Status = worse(c.Status, a.Severity)
		c.Recommendations = append(c.Recommendations, a.String())
	}
	return c
}

func worse(a, b metrics.Status) metrics.Status {
	if a.Rank() >= b.Rank() {
		return a
	}
	return b
}
