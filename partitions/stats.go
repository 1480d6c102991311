package partitions

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Phase is how a partition stands to a moment.
type Phase string

// The phases there are.
const (
	PhaseFuture    Phase = "future"
	PhaseHot       Phase = "hot" // it takes the events of now
	PhasePast      Phase = "past"
	PhaseDetaching Phase = "detaching" // a DETACH CONCURRENTLY is pending
	PhaseDetached  Phase = "detached"  // no partition any more; dropped when its grace period is over
	PhaseDefault   Phase = "default"   // takes what no other takes
)

// Stat is a partition and what Postgres knows of it. Events, sizes and times are as of the moment it was asked; Rows, DeadRows and Modified are estimates.
type Stat struct {
	Bounds
	Phase        Phase     `json:"state"`
	Rows         *int64    `json:"rows"` // nil before the first ANALYZE
	TableBytes   int64     `json:"table_bytes"`
	IndexBytes   int64     `json:"index_bytes"`
	TotalBytes   int64     `json:"total_bytes"`
	Oldest       time.Time `json:"oldest_event,omitzero"` // UTC; zero: none, or no index to find it by
	Newest       time.Time `json:"newest_event,omitzero"`
	DeadRows     int64     `json:"dead_rows"`
	ModifiedRows int64     `json:"modified_rows"` // since the last ANALYZE
	LastAnalyzed time.Time `json:"last_analyzed,omitzero"`
	LastVacuumed time.Time `json:"last_vacuumed,omitzero"`
	FrozenAt     time.Time `json:"frozen_at,omitzero"` // when [Upkeep] froze it, after its interval had ended
	XIDAge       int64     `json:"xid_age"`            // transactions since its oldest row that isn't frozen
	Unbuilt      []string  `json:"indexes_to_build,omitempty"`
	Ended        time.Time `json:"ended_at,omitzero"` // of one that has Unbuilt: the end of its interval, or its creation where that was later
	Fate         *Fate     `json:"fate,omitempty"`    // when it goes and why, or why not; nil where it couldn't be told
}

// Leader is who holds the lease, as the database's clock judges it.
type Leader struct {
	Term    int64     `json:"term"` // 0: nobody has ever led
	Holder  string    `json:"holder"`
	Since   time.Time `json:"since,omitzero"`
	Expired float64   `json:"expired_seconds"` // how long nobody has held the lease; 0 while somebody does
	// Maintained is when a leader last finished a round without an error; zero if none ever has.
	Maintained time.Time `json:"maintained_at,omitzero"`

	maintainedAgo float64 // seconds
}

// WayOut is a partition's way out as far as it has come: what audit_partition_event says.
type WayOut struct {
	Name  string    `json:"name"`
	State string    `json:"state"` // requested, verified or detached
	By    string    `json:"requested_by"`
	Since time.Time `json:"since"` // in this state
}

// Survey is what there is to know of the partitions at a moment.
type Survey struct {
	Now     time.Time
	Catalog Catalog
	Leader  Leader
	WaysOut []WayOut
	Stats   []Stat    // of the partitions and of what is detached and not dropped yet; nil where only the catalog was looked at
	StatsAt time.Time // when
	Problem string    // why what is to become of them couldn't be told; empty if it could
}

// Inspect looks at everything: some milliseconds for each partition. Whoever locks readers out of a partition holds it up for no longer than a minute;
// where only what is to become of the partitions can't be told, the rest is, and [Survey].Problem says why.
func Inspect(ctx context.Context, db *pgxpool.Pool, now time.Time, retention Retention) (Survey, error) {
	s, err := Glance(ctx, db, now)
	if err != nil {
		return Survey{}, err
	}
	if s.Stats, err = stats(ctx, db, now); err != nil {
		return Survey{}, err
	}
	s.StatsAt = now
	if err := s.addUnbuilt(ctx, db); err != nil {
		return Survey{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fates, err := Outlook(bounded, db, now, retention)
	if err != nil {
		s.Problem = err.Error()
	}
	byName := make(map[string]*Fate, len(fates))
	for i := range fates {
		byName[fates[i].Name] = &fates[i]
	}
	for i := range s.Stats {
		s.Stats[i].Fate = byName[s.Stats[i].Name]
	}
	return s, nil
}

// NextDrop is the partition that goes first, by what is known now; nil where none will.
func (s Survey) NextDrop() *Fate {
	var next *Fate
	for _, p := range s.Stats {
		if f := p.Fate; f != nil && !f.Due.IsZero() && len(f.Holds) == 0 && (next == nil || f.gone().Before(next.gone())) {
			next = f
		}
	}
	return next
}

// gone is when it can be dropped at the earliest.
func (f Fate) gone() time.Time {
	if f.DropAfter.After(f.Due) {
		return f.DropAfter
	}
	return f.Due
}

// Glance looks at the catalog and our own small tables alone: the survey has no Stats, and tells who leads.
func Glance(ctx context.Context, db *pgxpool.Pool, now time.Time) (Survey, error) {
	s := Survey{Now: now}
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if s.Catalog, err = read(ctx, tx); err != nil {
			return err
		}
		if s.WaysOut, err = waysOut(ctx, tx); err != nil {
			return err
		}
		s.Leader, err = leader(ctx, tx)
		return err
	})
	if err != nil {
		return Survey{}, fmt.Errorf("look at the partitions: %w", err)
	}
	return s, nil
}

func leader(ctx context.Context, db querier) (Leader, error) {
	rows, err := db.Query(ctx, `SELECT term, coalesce(holder, ''), acquired_at,
		greatest(0, extract(epoch FROM clock_timestamp() - greatest(expires_at, renewed_at)))::float8,
		maintained_at, coalesce(extract(epoch FROM clock_timestamp() - maintained_at), 0)::float8 FROM audit_leader`)
	if err != nil {
		return Leader{}, fmt.Errorf("read the leader's lease: %w", err)
	}
	l, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (Leader, error) {
		var l Leader
		var since, maintained *time.Time
		err := row.Scan(&l.Term, &l.Holder, &since, &l.Expired, &maintained, &l.maintainedAgo)
		l.Since, l.Maintained = utc(since), utc(maintained)
		return l, err
	})
	if err != nil {
		return Leader{}, fmt.Errorf("read the leader's lease: %w", err)
	}
	return l, nil
}

func waysOut(ctx context.Context, db querier) ([]WayOut, error) {
	rows, err := db.Query(ctx, `SELECT partition_name, state, requested_by, updated_at FROM audit_partition_event
		WHERE kind = 'drop' AND state IN ('requested', 'verified', 'detached') ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("read the ways out: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (WayOut, error) {
		var w WayOut
		err := row.Scan(&w.Name, &w.State, &w.By, &w.Since)
		w.Since = w.Since.UTC()
		return w, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the ways out: %w", err)
	}
	return all, nil
}

// stats returns what Postgres knows of each partition, and of what is detached and not dropped yet, by time.
func stats(ctx context.Context, db *pgxpool.Pool, now time.Time) ([]Stat, error) {
	var all []Stat
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Whoever locks a partition against readers (VACUUM FULL by hand, say) must not hold up the leader.
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '1min'`); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			SELECT partition_name, lower_bound, upper_bound, state, record_count, size_bytes, index_bytes, oldest_event, newest_event,
			       coalesce(dead_rows, 0), coalesce(modified_rows, 0), last_analyzed, last_vacuumed, frozen_at, coalesce(xid_age, 0)
			FROM get_audit_partition_stats()`)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Stat, error) {
			var s Stat
			var from, to, oldest, newest, analyzed, vacuumed, frozen *time.Time
			err := row.Scan(&s.Name, &from, &to, &s.Phase, &s.Rows, &s.TotalBytes, &s.IndexBytes, &oldest, &newest,
				&s.DeadRows, &s.ModifiedRows, &analyzed, &vacuumed, &frozen, &s.XIDAge)
			s.From, s.To, s.Oldest, s.Newest = utc(from), utc(to), utc(oldest), utc(newest)
			s.LastAnalyzed, s.LastVacuumed, s.FrozenAt = utc(analyzed), utc(vacuumed), utc(frozen)
			s.TableBytes = s.TotalBytes - s.IndexBytes
			s.Default, s.Detaching = s.Phase == PhaseDefault, s.Phase == PhaseDetaching
			s.Phase = s.phase(now)
			return s, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the statistics of the partitions: %w", err)
	}
	return all, nil
}

// phase is how the partition stands to now by our clock. What the database's says stays where it isn't a matter of clocks.
func (s Stat) phase(now time.Time) Phase {
	switch {
	case s.Detaching, s.Default, s.Phase == PhaseDetached:
		return s.Phase
	case !s.To.IsZero() && !s.To.After(now):
		return PhasePast
	case s.From.After(now):
		return PhaseFuture
	default:
		return PhaseHot
	}
}
