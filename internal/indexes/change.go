package indexes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"auditsink/internal/failpoint"
)

// Change gives an audit_log that has rows the indexes of another choice, while ingest and reads go on.
//
// From its first step on the database's choice is the new one (audit_index_profile), so that whoever makes partitions or deferred builds works towards it as well. Then what is new
// is built, and only when all of that is there, the rest is dropped: no filter ever goes without an index that it will have. Each step is found by looking at what there is; ended anywhere, the
// same change finishes later, and another one leads elsewhere from there.
//
// Only indexes that have both the definition and the name of one of a profile are dropped, and so none that somebody else made. One that somebody else made with a profile's definition serves in place
// of ours; an index of audit_log's takes it over with the others, and it goes with that.
type Change struct {
	To    Choice
	Grace time.Duration // after the end of a partition's interval, until deferred builds want it to have its own indexes
	Now   func() time.Time
	Did   func(Step) // told of each step once it is done
}

// What a [Step] does.
const (
	Choosing = "choose" // put the choice on record
	Building = "build"  // an index of a partition's own, CONCURRENTLY
	Creating = "create" // an index of audit_log, of those that its partitions have by then
	Dropping = "drop"   // an index of audit_log with those of its partitions
	Clearing = "clear"  // drop an index of a partition's own, CONCURRENTLY
)

// Step is one thing that a change does.
type Step struct {
	What  string `json:"what"`
	Table string `json:"table"`
	Name  string `json:"name,omitempty"` // of the index

	index  Index
	sql    string // the index's name, quoted, with its schema
	choice Choice
}

// String describes it for people.
func (s Step) String() string {
	switch s.What {
	case Choosing:
		return "put the choice on record: " + s.choice.String()
	case Building:
		return fmt.Sprintf("build %s CONCURRENTLY", s.Name)
	case Creating:
		return fmt.Sprintf("make %s of the indexes of its partitions", s.Name)
	case Dropping:
		return fmt.Sprintf("drop %s with the indexes of its partitions", s.Name)
	default:
		return fmt.Sprintf("drop %s CONCURRENTLY", s.Name)
	}
}

// ErrPooler means that a pooler stands between: the settings of a change would be others' as well, and its builds might run without them.
var ErrPooler = errors.New("the connection goes through a pooler, where a change of the indexes can't have a session of its own: set AUDITSINK_POSTGRES_MAINTENANCE_URL to the server's own address")

// ErrOvertaken means that another choice was put on record while a change was under way. What it did is sound, and the other one goes on from there.
var ErrOvertaken = errors.New("another choice of indexes was made meanwhile")

// Plan lists what is to be done, in order. It changes nothing. A partition whose interval ends later, or that is made later, adds to it.
func (c Change) Plan(ctx context.Context, db querier) ([]Step, error) {
	had, err := Chosen(ctx, db)
	if err != nil {
		return nil, err
	}
	parent, tables, err := survey(ctx, db)
	if err != nil {
		return nil, err
	}
	var steps []Step
	if had != c.To {
		steps = append(steps, Step{What: Choosing, Table: parent.name, choice: c.To})
	}
	return append(append(steps, c.additions(parent, tables)...), c.removals(parent, tables)...), nil
}

// additions are the steps to what is missing.
func (c Change) additions(parent relation, tables []relation) []Step {
	var steps []Step
	for _, i := range c.To.Parent() {
		if parent.has(i) {
			continue
		}
		for _, p := range parent.indexes {
			if p.ours(parent.name, i) { // not valid: made by hand, with ONLY
				steps = append(steps, Step{What: Dropping, Table: parent.name, Name: p.Name, index: i, sql: parent.of(p.Name)})
			}
		}
		for _, t := range tables {
			if !t.has(i) {
				steps = append(steps, Step{What: Building, Table: t.name, Name: i.Name(t.name), index: i})
			}
		}
		steps = append(steps, Step{What: Creating, Table: parent.name, Name: i.Name(parent.name), index: i})
	}
	for _, t := range tables {
		for _, i := range c.To.Later() {
			if c.ended(t) && !t.has(i) {
				steps = append(steps, Step{What: Building, Table: t.name, Name: i.Name(t.name), index: i})
			}
		}
	}
	return steps
}

// removals are the steps away from what is no longer wanted, once nothing is missing.
func (c Change) removals(parent relation, tables []relation) []Step {
	var steps []Step
	for _, i := range every {
		for _, p := range parent.indexes {
			if p.ours(parent.name, i) && p.Valid && !slices.Contains(c.To.Parent(), i) {
				steps = append(steps, Step{What: Dropping, Table: parent.name, Name: p.Name, index: i, sql: parent.of(p.Name)})
			}
		}
	}
	for _, t := range tables {
		for _, i := range every {
			for _, p := range t.indexes {
				if !p.Attached && p.ours(t.name, i) && (!c.wants(t, i) || !p.Valid && t.has(i)) {
					steps = append(steps, Step{What: Clearing, Table: t.name, Name: p.Name, index: i, sql: t.of(p.Name)})
				}
			}
		}
	}
	return steps
}

// wants tells whether a table may have an index of its own: one that audit_log's will take over, or a deferred one, which the leader may have built after a shorter grace than ours.
func (c Change) wants(t relation, i Index) bool {
	inherits := slices.ContainsFunc(t.indexes, func(p present) bool { return p.Attached && p.is(i) })
	return slices.Contains(c.To.Parent(), i) && !inherits || slices.Contains(c.To.Later(), i) && !t.upper.IsZero() && !c.Now().Before(t.upper)
}

// ended tells whether a partition's interval is over, with its grace.
func (c Change) ended(t relation) bool {
	return !t.upper.IsZero() && !c.Now().Before(t.upper.Add(c.Grace))
}

// ours tells whether an index is one of a profile by definition and name.
func (p present) ours(table string, i Index) bool {
	return p.is(i) && slices.Contains([]string{i.Name(table), i.inherited(table), i.copied(table)}, p.Name)
}

const (
	// patience is for how long a step is tried again for which somebody else is in the way.
	patience = 10 * time.Minute
	// concurrently are the settings of what keeps nobody waiting. What it waits for are others' transactions.
	concurrently = SessionSettings + `; SET lock_timeout = '10min'; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3`
	// briefly are those of transactions that keep ingest or readers waiting, for as long as they wait themselves.
	briefly = `SET LOCAL lock_timeout = '300ms'; SET LOCAL statement_timeout = '1s'; SET LOCAL idle_in_transaction_session_timeout = '5s'`
	// catalogs bounds what is done under those locks, which is work on the catalog only.
	catalogs = `SET LOCAL statement_timeout = '10s'`
)

// Run does all steps, one at a time, on a connection that is its own and in no transaction. Where somebody is in the way of one, it tries again for ten minutes.
// The error is [ErrOvertaken] where another choice was made meanwhile, and [ErrPooler] where the server's session isn't its own.
func (c Change) Run(ctx context.Context, conn *pgx.Conn) error {
	var pid uint32
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		return fmt.Errorf("ask whose session this is: %w", err)
	}
	if pid != conn.PgConn().PID() {
		return ErrPooler
	}
	if _, err := conn.Exec(ctx, concurrently); err != nil {
		return fmt.Errorf("prepare the session: %w", err)
	}
	for begun := false; ; begun = true {
		step, err := backoff.Retry(ctx, func() (*Step, error) {
			step, err := c.next(ctx, conn, begun)
			if err != nil && (!passing(err) || conn.IsClosed()) {
				return nil, backoff.Permanent(err)
			}
			return step, err
		}, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(patience))
		if err != nil {
			return err
		}
		if step == nil {
			return nil
		}
		if c.Did != nil {
			c.Did(*step)
		}
	}
}

// next does the first step of what is still to be done, and returns it; nil where nothing is.
func (c Change) next(ctx context.Context, conn *pgx.Conn, begun bool) (*Step, error) {
	steps, err := c.Plan(ctx, conn)
	if err != nil {
		return nil, err
	}
	if len(steps) == 0 {
		return nil, finish(ctx, conn, c.To)
	}
	s := steps[0]
	if begun && s.What == Choosing {
		return nil, ErrOvertaken
	}
	failpoint.Hit("indexes." + s.What + ".before")
	if err := c.do(ctx, conn, s); err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	failpoint.Hit("indexes." + s.What + ".after")
	return &s, nil
}

func (c Change) do(ctx context.Context, conn *pgx.Conn, s Step) error {
	switch s.What {
	case Choosing:
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := c.unopposed(ctx, tx); err != nil {
				return err
			}
			return choose(ctx, tx, c.To, "verified")
		})
	case Building:
		_, err := Create(ctx, conn, s.Table, s.index)
		if errors.Is(err, ErrNoTable) {
			return nil // dropped since
		}
		return err
	case Creating:
		return c.locked(ctx, conn, "SHARE", func(tx pgx.Tx) error {
			if err := ready(ctx, tx, s.index); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `CREATE INDEX `+pgx.Identifier{s.Name}.Sanitize()+` ON audit_log `+s.index.definition())
			return err
		})
	case Dropping:
		return c.locked(ctx, conn, "ACCESS EXCLUSIVE", func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `DROP INDEX IF EXISTS `+s.sql)
			return err
		})
	default:
		_, err := conn.Exec(ctx, `DROP INDEX CONCURRENTLY IF EXISTS `+s.sql)
		return err
	}
}

// unopposed sees, before anything is built, that nothing has the name of an index that audit_log is to have.
func (c Change) unopposed(ctx context.Context, tx pgx.Tx) error {
	parent, err := look(ctx, tx, "audit_log")
	if err != nil {
		return err
	}
	for _, i := range c.To.Parent() {
		if slices.ContainsFunc(parent.indexes, func(p present) bool { return p.ours(parent.name, i) }) || parent.has(i) {
			continue
		}
		if err := parent.free(ctx, tx, i); err != nil {
			return err
		}
	}
	return nil
}

// locked does what needs a lock on audit_log and all partitions, unless another choice was made. It waits for the locks for a moment only: all that while, those who come later wait behind it.
func (c Change) locked(ctx context.Context, conn *pgx.Conn, mode string, do func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, briefly); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `SELECT FROM audit_index_profile WHERE profile = $1 AND build = $2 FOR SHARE`, c.To.Profile, c.To.Build)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return ErrOvertaken
		}
		if _, err := tx.Exec(ctx, `LOCK TABLE audit_log IN `+mode+` MODE; `+catalogs); err != nil {
			return err
		}
		if err := do(tx); err != nil {
			return err
		}
		failpoint.Hit("indexes.locked.before-commit")
		return nil
	})
}

// errNotReady means that a partition came meanwhile, and has rows.
var errNotReady = errors.New("a partition with rows lacks the index")

// ready sees that nothing has the index's name, and that audit_log's will be made of those that its partitions have: what one lacks would be built under lock, which does no harm to an empty one.
func ready(ctx context.Context, tx pgx.Tx, i Index) error {
	parent, tables, err := survey(ctx, tx)
	if err == nil {
		err = parent.free(ctx, tx, i)
	}
	if err != nil {
		return err
	}
	for _, t := range tables {
		if !t.attached || t.has(i) {
			continue
		}
		var some bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+t.quoted+`)`).Scan(&some); err != nil {
			return err
		}
		if some {
			return errNotReady
		}
	}
	return nil
}

// choose puts a choice on record: what audit_log is to have from now on, and in the history, where it is verified until it is done. What was to be done before is over.
func choose(ctx context.Context, tx pgx.Tx, c Choice, state string) error {
	_, err := tx.Exec(ctx, `UPDATE audit_index_profile SET profile = $1, build = $2, changed_at = now(), changed_by = session_user`, c.Profile, c.Build)
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE audit_partition_event SET state = 'refused', updated_at = now() WHERE partition_name = 'audit_log' AND kind = 'index' AND state = 'verified'`)
	}
	if err == nil {
		_, err = tx.Exec(ctx, `INSERT INTO audit_partition_event (partition_name, kind, state, detail) VALUES ('audit_log', 'index', $3, jsonb_build_object('profile', $1::text, 'build', $2::text))`,
			c.Profile, c.Build, state)
	}
	if err != nil {
		return fmt.Errorf("put the choice of indexes on record: %w", err)
	}
	return nil
}

// finish puts on record that audit_log has what was chosen. What another chose meanwhile isn't done by that.
func finish(ctx context.Context, conn *pgx.Conn, c Choice) error {
	_, err := conn.Exec(ctx, `UPDATE audit_partition_event SET state = 'done', updated_at = now()
		WHERE partition_name = 'audit_log' AND kind = 'index' AND state = 'verified' AND detail->>'profile' = $1 AND detail->>'build' = $2`, c.Profile, c.Build)
	if err != nil {
		return fmt.Errorf("put the end of the change on record: %w", err)
	}
	return nil
}

// passing tells whether an error passes by itself: a lock not to be had in time (lock_not_available, query_canceled), deadlock_detected; or somebody else made, or dropped, what we
// were about to (duplicate_table, unique_violation of the catalog's, undefined_table, undefined_object).
func passing(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return errors.Is(err, errNotReady)
	}
	return slices.Contains([]string{"55P03", "57014", "40P01", "42P07", "23505", "42P01", "42704"}, pg.Code)
}
