package performance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"auditsink/metrics"
	"auditsink/partitions"
)

const (
	// keptDays is for how long what was done stays on record.
	keptDays = 90
	// lostAfter is when something that was begun and has not ended is taken for lost. What is begun is given less.
	lostAfter = 15 * time.Minute
	// roundBegins bounds a round: nothing is begun later than that after its start.
	roundBegins = time.Minute
	// lastOptimizations is how many the report lists.
	lastOptimizations = 20
)

// Optimizer does what [Decide] says, with everything on record in audit_optimization. It never drops, makes or changes an index.
type Optimizer struct {
	// DB is where the record is written, and where the leader's statements run: the connection should lead around a pooler.
	DB      *pgxpool.Pool
	On      Switches
	By      string                      // who this is, for the record
	Clear   func(context.Context) error // makes all entries of the cache misses; nil: there is none
	Metrics *metrics.Metrics
	Log     *zap.Logger
	Now     func() time.Time // this process's clock

	mu    sync.Mutex // guards state
	state State
}

func (o *Optimizer) decide(f Figures) []Action {
	o.mu.Lock()
	defer o.mu.Unlock()
	actions, next := Decide(o.state, f, o.On, o.Now())
	o.state = next
	return actions
}

// Cache looks at the cache's figures of one window, and clears a cache that doesn't pay. Every worker may: its figures are of its own reads.
func (o *Optimizer) Cache(ctx context.Context, c *Cache) error {
	if c == nil || o.Clear == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	for _, a := range o.decide(Figures{Cache: c}) {
		var id int64
		err := pgx.BeginFunc(ctx, o.DB, func(tx pgx.Tx) (err error) {
			id, err = o.begin(ctx, tx, a, a.Figures)
			return err
		})
		if err != nil || id == 0 {
			return err
		}
		failed, left := o.Clear(ctx), ""
		if failed != nil {
			left = failed.Error()
			failed = fmt.Errorf("clear the cache: %w", failed)
		}
		ended := pgx.BeginFunc(ctx, o.DB, func(tx pgx.Tx) error { return o.end(ctx, tx, id, left, nil) })
		o.tell(a, left)
		if err := errors.Join(failed, ended); err != nil {
			return err
		}
	}
	return nil
}

// Round does as the leader what is due to the partitions, one after the other, each decided by how things are then. It ends with
// [partitions.ErrDeposed] where the term is over.
func (o *Optimizer) Round(ctx context.Context, term partitions.Term) error {
	if !o.On.Analyze && !o.On.Vacuum {
		return nil
	}
	var failed []error
	for begun := time.Now(); time.Since(begun) < roundBegins; {
		tables, err := o.look(ctx)
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		all := []Partition{}
		for _, t := range tables {
			if t.Plain {
				p := t.Partition
				p.Live = t.rows()
				all = append(all, p)
			}
		}
		actions := o.decide(Figures{Partitions: all})
		if len(actions) == 0 {
			break
		}
		for _, a := range actions {
			if err := o.treat(ctx, term, a); err != nil {
				failed = append(failed, fmt.Errorf("%s %s: %w", a.Rule, a.Target, err))
			}
		}
		if err := errors.Join(failed...); errors.Is(err, partitions.ErrDeposed) || ctx.Err() != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

func (o *Optimizer) look(ctx context.Context) (tables map[uint32]tableCount, err error) {
	err = readPart(ctx, o.DB, func(ctx context.Context, tx pgx.Tx) error {
		tables, err = readTables(ctx, tx)
		return err
	})
	return tables, err
}

// treat analyzes or vacuums a partition.
func (o *Optimizer) treat(ctx context.Context, term partitions.Term, a Action) error {
	var id, before int64
	outcome := ""
	count := `SELECT pg_stat_get_analyze_count(to_regclass(quote_ident($1)))`
	if a.Rule == RuleVacuum {
		count = `SELECT pg_stat_get_vacuum_count(to_regclass(quote_ident($1)))`
	}
	care, err := partitions.Treat(ctx, o.DB, term, partitions.Treatment{
		Partition: a.Target, Kind: a.Rule,
		Begin: func(ctx context.Context, tx pgx.Tx) (begun bool, err error) {
			if err := tx.QueryRow(ctx, count, a.Target).Scan(&before); err != nil {
				return false, fmt.Errorf("look how often it was done: %w", err)
			}
			id, err = o.begin(ctx, tx, a, a.Figures)
			return id != 0, err
		},
		End: func(ctx context.Context, tx pgx.Tx, left string) error {
			tables, err := readTables(ctx, tx)
			if err != nil {
				return err
			}
			var after map[string]any
			for _, t := range tables {
				if t.Name != a.Target {
					continue
				}
				after = map[string]any{"live_rows": t.rows(), "dead_rows": t.Dead, "modified_rows": t.Modified}
				// Of a table that isn't ours, Postgres skips it with a mere warning.
				if done := map[bool]int64{true: t.Vacuums, false: t.Analyzes}[a.Rule == RuleVacuum]; left == "" && done == before {
					left = "the server skipped it: the table belongs to another role"
				}
			}
			outcome = left
			return o.end(ctx, tx, id, left, after)
		},
	})
	if err != nil || id == 0 {
		return err
	}
	if outcome == "" {
		outcome = care.Left
	}
	o.tell(a, outcome)
	return nil
}

// begin puts an action on record, and removes what has been there for long. 0: another has just done the same.
func (o *Optimizer) begin(ctx context.Context, tx pgx.Tx, a Action, figures map[string]any) (id int64, err error) {
	before, err := json.Marshal(map[string]any{"before": figures})
	if err != nil {
		return 0, fmt.Errorf("write the figures as JSON: %w", err)
	}
	if _, err := tx.Exec(ctx, `DELETE FROM audit_optimization WHERE recorded_at < now() - make_interval(days => $1::int)`, keptDays); err != nil {
		return 0, fmt.Errorf("remove old records of optimizations: %w", err)
	}
	if _, err := tx.Exec(ctx, `UPDATE audit_optimization SET state = 'failed', updated_at = now(), detail = 'it was begun and never heard of again: the worker ended, or led no more'
		WHERE state = 'begun' AND recorded_at < now() - $1::interval`, lostAfter); err != nil {
		return 0, fmt.Errorf("close lost records of optimizations: %w", err)
	}
	err = tx.QueryRow(ctx, `
		INSERT INTO audit_optimization (rule, target, reason, figures, done_by) SELECT $1, $2, $3, $4::jsonb, $5
		WHERE NOT EXISTS (SELECT FROM audit_optimization WHERE rule = $1 AND target = $2 AND recorded_at > now() - $6::interval) RETURNING id`,
		a.Rule, a.Target, a.Reason, string(before), o.By, a.Apart).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("record an optimization: %w", err)
	}
	return id, nil
}

// end puts on record how it went.
func (o *Optimizer) end(ctx context.Context, tx pgx.Tx, id int64, left string, figures map[string]any) error {
	after, err := json.Marshal(map[string]any{"after": figures})
	if err != nil {
		return fmt.Errorf("write the figures as JSON: %w", err)
	}
	if figures == nil {
		after = []byte("{}")
	}
	_, err = tx.Exec(ctx, `UPDATE audit_optimization SET state = CASE WHEN $2::text = '' THEN 'done' ELSE 'failed' END, detail = nullif($2::text, ''),
		figures = figures || $3::jsonb, updated_at = clock_timestamp() WHERE id = $1`, id, left, string(after))
	if err != nil {
		return fmt.Errorf("record how an optimization went: %w", err)
	}
	return nil
}

// tell logs and counts what was done.
func (o *Optimizer) tell(a Action, left string) {
	fields := []zap.Field{zap.String("rule", a.Rule), zap.String("target", a.Target), zap.String("reason", a.Reason)}
	if left != "" {
		o.Log.Warn("an optimization was not done, trying again later", append(fields, zap.String("why", left))...)
		return
	}
	o.Metrics.Optimizations.WithLabelValues(a.Rule).Inc()
	o.Log.Info("optimized", fields...)
}

// readOptimizations lists the last ones.
func readOptimizations(ctx context.Context, tx pgx.Tx) ([]Optimization, error) {
	return rowsOf(ctx, tx, "what was optimized", func(row pgx.CollectableRow) (Optimization, error) {
		var p Optimization
		var ended *time.Time
		err := row.Scan(&p.Rule, &p.Target, &p.Reason, &p.Figures, &p.State, &p.Detail, &p.By, &p.Begun, &ended)
		p.Begun, p.Ended = p.Begun.UTC(), utc(ended)
		return p, err
	}, `SELECT rule, target, reason, coalesce(figures, '{}'), state, coalesce(detail, ''), done_by, recorded_at, CASE WHEN state <> 'begun' THEN updated_at END
		FROM audit_optimization ORDER BY recorded_at DESC, id DESC LIMIT $1`, lastOptimizations)
}
