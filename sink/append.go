package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"auditsink/internal/event"
	"auditsink/internal/failpoint"
	"auditsink/internal/postgres"
)

// Stored says what a batch became.
type Stored struct {
	Rows, Quarantined int64
}

// begin opens a transaction that may hold the lock on a lane's row. A session that goes silent in it is ended by the server; LOCAL makes the settings work through a pooler too.
const begin = `BEGIN;
	SET LOCAL idle_in_transaction_session_timeout = '5s';
	SET LOCAL lock_timeout = '10s';
	SET LOCAL tcp_keepalives_idle = 5; SET LOCAL tcp_keepalives_interval = 2; SET LOCAL tcp_keepalives_count = 3`

const insertGap = `INSERT INTO audit_gap (lane_id, kind, from_offset, to_offset) VALUES ($1, $2, $3, $4)`

// errUnanswered marks a COMMIT whose outcome is not known.
var errUnanswered = errors.New("COMMIT was not answered")

// errRecord marks an error that a record of the batch may be to blame for.
var errRecord = errors.New("the database refuses a record")

// errNotMoved marks a batch whose claim or start no longer fits the lane's row.
var errNotMoved = errors.New("the position did not move")

// Append stores a batch once: also where an earlier attempt, reported as failed, was in truth committed. It tries again without
// end while errors are transient, until ctx ends. Errors: [*FencedError], [*MovedError], [*HaltError], [*FatalError], or ctx's.
func (s *Sink) Append(ctx context.Context, b *Batch) (Stored, error) {
	started := time.Now()
	attempt := attempt{Sink: s, batch: b}
	ensured := false
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 10*time.Second
	for {
		err := attempt.try(ctx)
		if err == nil {
			s.count(b, attempt.stored, started)
			return attempt.stored, nil
		}
		if ctx.Err() != nil {
			return Stored{}, context.Cause(ctx)
		}
		if final := s.final(err); final != nil {
			return Stored{}, final
		}
		class := postgres.Classify(err)
		s.metrics.FlushRetries.WithLabelValues(class.String()).Inc()
		if class == postgres.Row {
			s.log.Warn("batch refused, looking for the records to blame", zap.Int32("lane_id", b.Claim.LaneID), zap.Int64("from", b.Claim.Next),
				zap.Int("records", len(b.Records)), zap.Error(err))
			continue
		}
		if class == postgres.NoPartition {
			if err = attempt.makePartitions(ctx); err == nil && !ensured {
				ensured = true
				continue
			}
			if err == nil {
				err = errors.New("a row finds no table partition, though all are there")
			}
			if final := s.final(err); final != nil {
				return Stored{}, final
			}
			s.metrics.FlushRetries.WithLabelValues(postgres.Classify(err).String()).Inc() // no mere late event: the alert flush_failing tells them apart
		}
		wait := pause.NextBackOff()
		s.log.Warn("batch not stored yet, trying again", zap.Int32("lane_id", b.Claim.LaneID), zap.Int64("from", b.Claim.Next),
			zap.Int("records", len(b.Records)), zap.Duration("pause", wait), zap.Error(postgres.Explain(err)))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return Stored{}, context.Cause(ctx)
		}
	}
}

// final returns the error that ends the attempts, or nil where another may succeed.
func (s *Sink) final(err error) error {
	if fenced, ok := errors.AsType[*FencedError](err); ok {
		s.metrics.Fenced.Inc()
		return fenced
	}
	if moved, ok := errors.AsType[*MovedError](err); ok {
		return moved
	}
	if halt, ok := errors.AsType[*HaltError](err); ok {
		return halt
	}
	switch postgres.Classify(err) {
	case postgres.Transient, postgres.NoPartition:
		return nil
	case postgres.Fatal:
		return &FatalError{postgres.Explain(err)}
	case postgres.Row:
		if errors.Is(err, errRecord) {
			return nil
		}
		return &HaltError{fmt.Errorf("%w: mend the constraint or trigger that says so, then run `auditsink lanes accept`", err)}
	case postgres.Unknown:
		return &HaltError{postgres.Explain(err)}
	}
	return &HaltError{err}
}

// count adds a committed batch to the metrics.
func (s *Sink) count(b *Batch, stored Stored, started time.Time) {
	now := time.Now()
	s.metrics.FlushSeconds.Observe(now.Sub(started).Seconds())
	s.metrics.FlushRows.Observe(float64(stored.Rows))
	s.metrics.RowsInserted.Add(float64(stored.Rows))
	if b.Gap != "" {
		s.metrics.Gaps.Inc()
	}
	millis := now.UnixMilli()
	for i := range b.Records {
		if t := b.Records[i].Timestamp; t >= 0 {
			s.metrics.EndToEndSeconds.Observe(float64(max(millis-t, 0)) / 1000)
		}
	}
}

// attempt is a batch on its way in. It belongs to the goroutine that called Append.
type attempt struct {
	*Sink
	batch *Batch
	// unsettled says that a COMMIT may have stored the batch; stored and reasons are then what it holds.
	unsettled bool
	stored    Stored
	reasons   []event.Reason
	// barred are days that no table partition may be made for.
	barred map[time.Time]bool
	// pass lets another batch send its rows.
	pass func()
	// apart says that the rows had to wait for a lock in vain. The next attempt takes a turn of those that are kept for that: most others have no part in the lock.
	apart bool
	// search is what is known about a batch that the database refused, nil about any other.
	search *search
}

// attemptTimeout bounds what one attempt does on a connection: it may be dead without saying so, and what it left open is settled by the next.
var attemptTimeout = time.Minute // shorter in a test

// try makes one attempt. Whatever it reports, the batch is either stored whole or not at all.
func (a *attempt) try(ctx context.Context) error {
	if a.unsettled {
		stored, err := a.resolve(ctx)
		if err != nil {
			return err
		}
		a.unsettled = false
		if stored {
			a.quarantined()
			return nil
		}
	}
	end, err := a.turn(ctx)
	if err != nil {
		return err
	}
	a.pass = end
	defer end()
	return a.store(ctx)
}

// resolve reads whether an earlier attempt has stored the batch.
func (a *attempt) resolve(ctx context.Context) (stored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := a.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	return a.settle(ctx, conn.Conn())
}

// store runs the transaction, and finds out what became of it.
func (a *attempt) store(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := a.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	defer time.AfterFunc(turnLimit, a.pass).Stop()
	err = a.transact(ctx, conn.Conn())
	switch {
	case err == nil:
		a.quarantined()
		return nil
	case errors.Is(err, errUnanswered):
		a.unsettled = true
		return err
	}
	a.rollback(ctx, conn.Conn(), err)
	if errors.Is(err, errRecord) {
		// The next attempt reads the position before it looks for the record: under a unique index on the event, a worker that has lost the
		// lane would find all of them refused.
		a.unsettled = true
		return err
	}
	if !errors.Is(err, errNotMoved) {
		return err
	}
	// Not our position: fenced, moved, or stored by an earlier attempt of ours after all.
	if stored, err := a.settle(ctx, conn.Conn()); err != nil || !stored {
		return errors.Join(err, fmt.Errorf("store a batch of lane %d: %w", a.batch.Claim.LaneID, errNotMoved))
	}
	a.quarantined()
	return nil
}

// transact is the transaction: rows, quarantine, position, COMMIT.
func (a *attempt) transact(ctx context.Context, conn *pgx.Conn) error {
	b, pg := a.batch, conn.PgConn()
	if _, err := pg.Exec(ctx, begin).ReadAll(); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	failpoint.Hit("sink.begun")
	a.stored, a.reasons = Stored{}, a.reasons[:0]
	if len(b.Records) > 0 {
		err := a.copyRecords(ctx, conn)
		a.apart = postgres.IsLocked(err)
		if err != nil {
			return err
		}
	}
	if b.Gap != "" {
		if _, err := conn.Exec(ctx, insertGap, b.Claim.LaneID, b.Gap, b.Claim.Next, b.To); err != nil {
			return fmt.Errorf("put a gap of lane %d on record: %w", b.Claim.LaneID, err)
		}
	}
	a.pass()
	failpoint.Hit("sink.copied")
	tag, err := conn.Exec(ctx, move, b.Claim.LaneID, b.To, b.LeaderEpoch, b.Claim.Epoch, b.Claim.Next)
	if err != nil {
		return fmt.Errorf("move the position of lane %d: %w", b.Claim.LaneID, withoutContent(err))
	}
	if tag.RowsAffected() != 1 {
		return errNotMoved
	}
	failpoint.Hit("sink.moved")
	if _, err := pg.Exec(ctx, "COMMIT").ReadAll(); err != nil {
		if postgres.Classify(err) == postgres.Row {
			return a.refusedCommit(err)
		}
		return fmt.Errorf("%w: %w", errUnanswered, err)
	}
	failpoint.Hit("sink.committed")
	return nil
}

// copyRecords sends the rows, and then the records that can't be rows.
func (a *attempt) copyRecords(ctx context.Context, conn *pgx.Conn) error {
	var out []aside
	var err error
	if a.search == nil {
		stream := a.take(a.batch.Records, time.Now())
		if err = a.copyRows(ctx, conn, stream); errors.Is(err, errRecord) {
			a.search = newSearch(len(a.batch.Records))
		}
		out = stream.aside
	} else {
		out, err = a.bisect(ctx, conn)
	}
	if err != nil {
		return err
	}
	a.stored.Quarantined = int64(len(out))
	for i := range out {
		a.reasons = append(a.reasons, out[i].Reason)
	}
	return copyAside(ctx, conn, a.batch.Claim.LaneID, out)
}

// take begins to make rows of records.
func (a *attempt) take(records []event.Record, now time.Time) *rowStream {
	scratch := a.scratches.Get().(*scratch) //nolint:forcetypeassert,errcheck // the pool holds nothing else
	stream := newRowStream(scratch, a.batch.Claim.LaneID, records, a.barred, now)
	if a.search != nil {
		stream.refused = a.search.refused
	}
	return stream
}

// release ends a stream, whose scratch space others may have from then on.
func (a *attempt) release(stream *rowStream) {
	stream.close()
	if cap(stream.scratch.buf) > keepChunk {
		stream.scratch.buf = nil
	}
	a.scratches.Put(stream.scratch)
}

// copyRows sends the rows of a stream, and ends it.
func (a *attempt) copyRows(ctx context.Context, conn *pgx.Conn, stream *rowStream) error {
	tag, err := conn.PgConn().CopyFrom(ctx, stream, copyRows)
	a.release(stream)
	if err != nil {
		return copyFailed(len(stream.records), err)
	}
	if tag.RowsAffected() != stream.rows {
		return &HaltError{fmt.Errorf("copy into audit_log: %d rows sent, %d stored: find the trigger or rule that drops rows", stream.rows, tag.RowsAffected())}
	}
	a.stored.Rows += stream.rows
	return nil
}

// copyFailed marks the error of a COPY of so many records as one that a record may be to blame for, where it is.
func copyFailed(records int, err error) error {
	err = fmt.Errorf("copy %d records into audit_log: %w", records, withoutContent(err))
	if postgres.Classify(err) == postgres.Row {
		return fmt.Errorf("%w: %w", errRecord, err)
	}
	return err
}

// rollback frees the connection for others, or gives it up.
func (a *attempt) rollback(ctx context.Context, conn *pgx.Conn, cause error) {
	if conn.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, err := conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll()
	if err != nil || postgres.IsReadOnly(cause) {
		conn.Close(ctx) //nolint:errcheck,gosec // it is given up either way, and the batch's own error is what gets reported
	}
}

// settle finds out where the lane stands: true says that the batch is stored. FOR UPDATE waits for a COMMIT still under way, which a
// plain read would overlook.
func (a *attempt) settle(ctx context.Context, conn *pgx.Conn) (bool, error) {
	b := a.batch
	var epoch, next int64
	var owner string
	err := conn.QueryRow(ctx, `SELECT epoch, next_offset, coalesce(owner, 'nobody') FROM audit_lane WHERE lane_id = $1 FOR UPDATE`, b.Claim.LaneID).
		Scan(&epoch, &next, &owner)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, &MovedError{Lane: b.Claim.LaneID, Expected: b.Claim.Next, Next: -1}
	case err != nil:
		return false, fmt.Errorf("read the position of lane %d: %w", b.Claim.LaneID, err)
	case epoch != b.Claim.Epoch:
		return false, &FencedError{Lane: b.Claim.LaneID, Epoch: epoch, Owner: owner}
	case next == b.To:
		return true, nil
	case next == b.Claim.Next:
		return false, nil
	}
	return false, &MovedError{Lane: b.Claim.LaneID, Expected: b.Claim.Next, Next: next}
}

// makePartitions has the missing table partitions made, for all the batch's rows at once. Days that can't have one are barred: their
// rows go to quarantine.
func (a *attempt) makePartitions(ctx context.Context) error {
	stream := a.take(a.batch.Records, time.Now())
	defer a.release(stream)
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return fmt.Errorf("find the days of a batch: %w", err)
	}
	refused, err := a.ensure(ctx, byTime(stream.days))
	if err != nil {
		return fmt.Errorf("make the table partitions of a batch: %w", err)
	}
	if a.barred == nil {
		a.barred = map[time.Time]bool{}
	}
	for _, day := range refused {
		a.barred[day.UTC()] = true
	}
	return nil
}

// quarantined counts the records of a stored batch that went to quarantine.
func (a *attempt) quarantined() {
	for _, reason := range a.reasons {
		a.metrics.Quarantined.WithLabelValues(reason.String()).Inc()
	}
	if a.search != nil {
		a.searched()
	}
}
