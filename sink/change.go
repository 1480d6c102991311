package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/failpoint"
	"auditsink/internal/postgres"
)

// Change is what an operator does to quarantined records that are still new.
type Change struct {
	Filter Filter // its State doesn't count
	Limit  int    // at most so many records, 0 for all
	Reason string // why, as it goes on record; a redrive may leave it empty
	Client string // who: no two processes may have the same
	// Attempts bounds how often in a row a batch is tried while errors are transient, with Delay in between.
	Attempts int
	Delay    time.Duration
	// DryRun only tells what would be. What the database itself refuses it can't know.
	DryRun bool
	// Unsigned lets a redrive without a signature key take records whose signature was found wrong.
	Unsigned bool
}

// Changed says what became of the records chosen.
type Changed struct {
	// Moved are the records redriven or discarded.
	Moved int64
	// Kept are those still quarantined, by reason.
	Kept map[string]int64
	// Elsewhere are those that somebody else redrove or discarded meanwhile.
	Elsewhere int64
}

const (
	changeRows  = 500
	changeBytes = 8 << 20
)

// moveOn takes records out of the state new, with a note of it for each. All rests on its condition: of two who move a record, the
// second waits for the first and then finds it moved.
const moveOn = `WITH moved AS (
		UPDATE audit_quarantine SET state = $2::text WHERE id = ANY ($1) AND state = 'new' RETURNING id, lane_id, lane_offset, reason)
	INSERT INTO audit_lane_event (lane_id, kind, from_offset, to_offset, quarantine_id, reason, client)
	SELECT lane_id, $2::text, lane_offset, lane_offset + 1, id, coalesce(nullif($3::text, ''), 'no longer ' || reason), $4::text FROM moved ORDER BY id`

// changing is a Change under way.
type changing struct {
	Change
	pool *postgres.Pool
	// state is where the records go, and the kind of the notes.
	state string
	// work does a batch within a transaction.
	work func(ctx context.Context, tx pgx.Tx, ids []int64) (Changed, error)
	// refused, if not nil, makes what it can of an error that isn't transient: true asks for another attempt.
	refused func(ctx context.Context, ids []int64, err error) (bool, error)

	// cursor and top are the IDs after which the next batch begins, and with which the last ends: records that come meanwhile are not taken.
	cursor, top int64
	chosen      int
	total       Changed
	// unsettled says that a COMMIT may have stored the last batch; it would then have become pending.
	unsettled bool
	pending   Changed
}

// Discard marks records as of no use, for the reason given; their bytes stay. Whatever the error, what is returned was done.
func Discard(ctx context.Context, pool *postgres.Pool, c Change) (Changed, error) {
	d := &changing{Change: c, pool: pool, state: StateDiscarded}
	d.work = func(ctx context.Context, tx pgx.Tx, ids []int64) (Changed, error) {
		moved, err := d.move(ctx, tx, ids)
		return Changed{Moved: moved, Elsewhere: int64(len(ids)) - moved}, err
	}
	if c.DryRun {
		d.work = d.countNew
	}
	if err := d.run(ctx); err != nil {
		return d.total, fmt.Errorf("discard quarantined records: %w", err)
	}
	return d.total, nil
}

// countNew is the dry run of a batch to discard.
func (c *changing) countNew(ctx context.Context, tx pgx.Tx, ids []int64) (Changed, error) {
	var n int64
	err := tx.QueryRow(ctx, `SELECT count(*) FROM audit_quarantine WHERE id = ANY ($1) AND state = 'new'`, ids).Scan(&n)
	return Changed{Moved: n, Elsewhere: int64(len(ids)) - n}, err
}

// move moves those of the records that are still new.
func (c *changing) move(ctx context.Context, tx pgx.Tx, ids []int64) (int64, error) {
	tag, err := tx.Exec(ctx, moveOn, ids, c.state, c.Reason, c.Client)
	if err != nil {
		return 0, fmt.Errorf("mark %d records as %s: %w", len(ids), c.state, withoutContent(err))
	}
	return tag.RowsAffected(), nil
}

// run goes through the records chosen, a batch at a time.
func (c *changing) run(ctx context.Context) error {
	c.total.Kept = map[string]int64{}
	// The operator must know what was done: a batch once begun is brought to its end, which attemptTimeout bounds.
	life := context.WithoutCancel(ctx)
	err := c.retry(ctx, func() error {
		return c.one(life, &c.top, `SELECT coalesce(max(id), 0) FROM audit_quarantine`)
	})
	if err != nil {
		return fmt.Errorf("find the last record: %w", err)
	}
	for ctx.Err() == nil {
		var ids []int64
		err := c.retry(ctx, func() (err error) {
			ids, err = c.next(life)
			return err
		})
		if err != nil {
			return fmt.Errorf("find the next records: %w", err)
		}
		if len(ids) == 0 {
			return nil
		}
		if err := c.batch(ctx, ids); err != nil {
			return err
		}
		c.cursor = ids[len(ids)-1]
		c.chosen += len(ids)
	}
	return context.Cause(ctx)
}

// one reads one value.
func (c *changing) one(ctx context.Context, into any, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return conn.QueryRow(ctx, sql, args...).Scan(into)
}

// next chooses a batch: few enough, and small enough to be held in memory, if it isn't one record.
func (c *changing) next(ctx context.Context) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	most := changeRows
	if c.Limit > 0 {
		most = min(most, c.Limit-c.chosen)
	}
	f := c.Filter
	f.State = StateNew
	where := f.conditions()
	where.add("q.id > $%d", c.cursor)
	where.add("q.id <= $%d", c.top)
	where.args = append(where.args, most)
	type sized struct{ ID, Bytes int64 }
	page, err := collect(ctx, c.pool, pgx.RowToStructByPos[sized], `SELECT q.id, coalesce(octet_length(q.value), 0)::bigint FROM audit_quarantine q`+
		where.where()+fmt.Sprintf(` ORDER BY q.id LIMIT $%d`, len(where.args)), where.args...)
	if err != nil {
		return nil, err
	}
	ids := make([]int64, 0, len(page))
	bytes := int64(0)
	for _, r := range page {
		if bytes += r.Bytes; bytes > changeBytes && len(ids) > 0 {
			break
		}
		ids = append(ids, r.ID)
	}
	return ids, nil
}

// batch does a batch. One that the database refuses is halved until the records at fault are alone, so that they hold up no other.
func (c *changing) batch(ctx context.Context, ids []int64) error {
	for {
		err := c.retry(ctx, func() error { return c.attempt(context.WithoutCancel(ctx), ids) })
		if err == nil {
			return nil
		}
		if errors.Is(err, errRecord) && len(ids) > 1 {
			half := len(ids) / 2
			if err := c.batch(ctx, ids[:half]); err != nil {
				return err
			}
			ids = ids[half:]
			continue
		}
		if c.refused == nil {
			return err
		}
		again, err := c.refused(ctx, ids, err)
		if err != nil || !again {
			return err
		}
	}
}

// retry tries as often as the Change allows while errors are transient, and until ctx ends.
func (c *changing) retry(ctx context.Context, try func() error) error {
	for n := 1; ; n++ {
		err := try()
		if err == nil || n >= c.Attempts || postgres.Classify(err) != postgres.Transient {
			return err
		}
		if final := (*HaltError)(nil); errors.As(err, &final) {
			return err
		}
		select {
		case <-time.After(c.Delay):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// attempt tries a batch once. Whatever it reports, the batch is either done whole or not at all.
func (c *changing) attempt(ctx context.Context, ids []int64) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if c.unsettled {
		done, err := c.settle(ctx, conn.Conn(), ids)
		if err != nil {
			return err
		}
		c.unsettled = false
		if done {
			c.count()
			return nil
		}
	}
	if err := c.transact(ctx, conn.Conn(), ids); err != nil {
		c.unsettled = errors.Is(err, errUnanswered)
		return err
	}
	c.count()
	return nil
}

// count adds what a batch has become.
func (c *changing) count() {
	c.total.Moved += c.pending.Moved
	c.total.Elsewhere += c.pending.Elsewhere
	for reason, n := range c.pending.Kept {
		c.total.Kept[reason] += n
	}
}

// transact is the transaction of a batch.
func (c *changing) transact(ctx context.Context, conn *pgx.Conn, ids []int64) (err error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: begin, CommitQuery: "COMMIT"})
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer func() {
		// Where there is nothing to roll back any more it does nothing; where it fails it gives the connection up.
		if rollback := tx.Rollback(ctx); rollback != nil && !errors.Is(rollback, pgx.ErrTxClosed) {
			err = errors.Join(err, rollback)
		}
	}()
	if c.pending, err = c.work(ctx, tx, ids); err != nil || c.DryRun {
		return err
	}
	failpoint.Hit("quarantine.moved")
	if err := tx.Commit(ctx); err != nil {
		if postgres.Classify(err) == postgres.Row { // a deferred constraint: that is an answer
			return fmt.Errorf("%w: COMMIT: %w", errRecord, withoutContent(err))
		}
		return fmt.Errorf("%w: %w", errUnanswered, err)
	}
	failpoint.Hit("quarantine.committed")
	return nil
}

// settle finds out whether an unanswered COMMIT has moved the batch on. FOR UPDATE waits for one still under way. No note of ours means
// that nothing was moved, and then the batch can be done again.
func (c *changing) settle(ctx context.Context, conn *pgx.Conn, ids []int64) (done bool, err error) {
	if _, err = conn.Exec(ctx, `SELECT FROM audit_quarantine WHERE id = ANY ($1) ORDER BY id FOR UPDATE`, ids); err == nil {
		err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM audit_lane_event WHERE quarantine_id = ANY ($1) AND kind = $2 AND client = $3)`,
			ids, c.state, c.Client).Scan(&done)
	}
	if err != nil {
		return false, fmt.Errorf("find out whether records were %s: %w", c.state, err)
	}
	return done, nil
}
