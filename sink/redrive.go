package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/event"
	"auditsink/internal/failpoint"
	"auditsink/internal/postgres"
)

// Redrive takes quarantined records again by the sink's rules. One that is a row now moves to its table in the transaction that marks it
// redriven, so that it does once, whoever else tries and whatever breaks; one that still breaks a rule stays, with its reason brought up to
// date. Records that come meanwhile are not taken. Whatever the error, what is returned was done.
func (s *Sink) Redrive(ctx context.Context, c Change) (Changed, error) {
	r := &redriving{decoder: event.NewDecoder(s.rules), ensure: s.ensure, ensured: map[time.Time]bool{}, barred: map[time.Time]bool{}, unchecked: len(s.rules.SignatureKey) == 0 && !c.Unsigned}
	r.changing = changing{Change: c, pool: s.pool, state: StateRedriven, work: r.take, refused: r.refuse}
	if err := r.run(ctx); err != nil {
		return r.total, fmt.Errorf("redrive quarantined records: %w", err)
	}
	return r.total, nil
}

// redriving is a redrive under way.
type redriving struct {
	changing
	decoder *event.Decoder
	ensure  EnsureFunc
	// unchecked says that there is no key to check a signature with, and so no ground to think that one found wrong is right now.
	unchecked bool
	// days are those of the batch's rows, as first instants in UTC; ensured are those that table partitions were asked for, and barred
	// those that got none.
	days, ensured, barred map[time.Time]bool
	// rejected is the record that the database refused last, by itself, and why.
	rejected int64
	why      event.Quarantine
}

const readNew = `SELECT id, lane_id, lane_offset, record_timestamp, value, reason, coalesce(detail, '')
	FROM audit_quarantine WHERE id = ANY ($1) AND state = 'new' ORDER BY id`

// verdicts are what the records of a batch become.
type verdicts struct {
	rows []int64 // IDs of those that are rows
	copy []byte  // the rows, as COPY wants them
	// kept are the others: IDs, reasons, details.
	kept            []int64
	reasons, detail []string
}

// take does a batch: locks it, takes each record, stores the rows and marks them.
func (r *redriving) take(ctx context.Context, tx pgx.Tx, ids []int64) (Changed, error) {
	sql := readNew + ` FOR UPDATE` // and so waits for whoever else has them
	if r.DryRun {
		sql = readNew
	}
	v, err := r.judge(ctx, tx, sql, ids)
	if err != nil {
		return Changed{}, fmt.Errorf("lock and take %d records: %w", len(ids), err)
	}
	done := Changed{Moved: int64(len(v.rows)), Kept: map[string]int64{}, Elsewhere: int64(len(ids) - len(v.rows) - len(v.kept))}
	for _, reason := range v.reasons {
		done.Kept[reason]++
	}
	if r.DryRun {
		return done, nil
	}
	if len(v.rows) > 0 {
		if err := storeRows(ctx, tx, v); err != nil {
			return Changed{}, err
		}
		failpoint.Hit("quarantine.copied")
		moved, err := r.move(ctx, tx, v.rows)
		if err != nil {
			return Changed{}, err
		}
		if moved != done.Moved {
			return Changed{}, &HaltError{fmt.Errorf("%d rows stored, but %d records marked as redriven: find the trigger or rule on audit_quarantine", done.Moved, moved)}
		}
	}
	if len(v.kept) > 0 {
		_, err := tx.Exec(ctx, `UPDATE audit_quarantine q SET reason = k.reason, detail = k.detail
			FROM unnest($1::bigint[], $2::text[], $3::text[]) k(id, reason, detail)
			WHERE q.id = k.id AND q.state = 'new' AND (q.reason, q.detail) IS DISTINCT FROM (k.reason, k.detail)`, v.kept, v.reasons, v.detail)
		if err != nil {
			return Changed{}, fmt.Errorf("bring the reasons of %d records up to date: %w", len(v.kept), withoutContent(err))
		}
	}
	return done, nil
}

// judge reads a batch and takes each record.
func (r *redriving) judge(ctx context.Context, tx pgx.Tx, sql string, ids []int64) (*verdicts, error) {
	rows, err := tx.Query(ctx, sql, ids)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	r.days = map[time.Time]bool{}
	// The buffer is not used again: when the connection breaks, COPY may still read it after it has returned.
	v := &verdicts{copy: bytes.Clone(copyHeader)}
	var id int64
	var lane int32
	var rec event.Record
	var at *time.Time
	var was, detail string
	_, err = pgx.ForEachRow(rows, []any{&id, &lane, &rec.Offset, &at, &rec.Value, &was, &detail}, func() error {
		rec.Timestamp = -1
		if at != nil {
			rec.Timestamp = at.UnixMilli()
		}
		row, why := r.judgeOne(id, &rec, was, detail, now)
		if why == nil {
			v.copy = appendRow(v.copy, row, lane, &rec, now.UnixMilli())
			v.rows = append(v.rows, id)
			return nil
		}
		v.kept = append(v.kept, id)
		v.reasons = append(v.reasons, why.Reason.String())
		v.detail = append(v.detail, why.Detail+timestampNote(detail, why.Detail))
		return nil
	})
	v.copy = append(v.copy, copyTrailer...)
	return v, err
}

// judgeOne takes a record that was quarantined for a reason.
func (r *redriving) judgeOne(id int64, rec *event.Record, was, detail string, now time.Time) (*event.Row, *event.Quarantine) {
	if was == event.SignatureMismatch.String() && r.unchecked {
		return nil, &event.Quarantine{Reason: event.SignatureMismatch, Detail: detail}
	}
	row, why := r.decoder.Take(rec, now)
	if why != nil {
		return nil, why
	}
	if id == r.rejected {
		return nil, &r.why
	}
	day := dayOf(row.Timestamp)
	if r.barred[day] {
		return nil, &barredDay
	}
	r.days[day] = true
	return row, nil
}

// timestampNote is what copyAside added to a detail on a timestamp that its column can't hold: it is nowhere else, and so must be kept.
func timestampNote(old, detail string) string {
	const begins = " (the record's timestamp, "
	_, note, found := strings.Cut(old, begins)
	if !found || strings.Contains(detail, begins) {
		return ""
	}
	return begins + note
}

// storeRows copies rows into their table.
func storeRows(ctx context.Context, tx pgx.Tx, v *verdicts) error {
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(v.copy), copyRows)
	if err != nil {
		return copyFailed(len(v.rows), err)
	}
	if int(tag.RowsAffected()) != len(v.rows) {
		return &HaltError{fmt.Errorf("copy into audit_log: %d rows sent, %d stored: find the trigger or rule that drops rows", len(v.rows), tag.RowsAffected())}
	}
	return nil
}

// refuse makes what it can of an error: it has missing table partitions made, and notes why a record by itself is refused.
func (r *redriving) refuse(ctx context.Context, ids []int64, err error) (again bool, _ error) {
	if cause, ok := errors.AsType[*refusal](err); ok && errors.Is(err, errRecord) && ids[0] != r.rejected { // ids is down to one
		r.rejected, r.why = ids[0], rejected(cause.cause())
		return true, nil
	}
	if postgres.Classify(err) != postgres.NoPartition {
		return false, err
	}
	missing := slices.DeleteFunc(byTime(r.days), func(day time.Time) bool { return r.ensured[day] })
	if len(missing) == 0 {
		return false, fmt.Errorf("a row finds no table partition, though all are there: %w", err)
	}
	var barred []time.Time
	err = r.retry(ctx, func() (err error) {
		barred, err = r.ensure(ctx, missing)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("make the table partitions of a batch: %w", err)
	}
	for _, day := range missing {
		r.ensured[day] = true
	}
	for _, day := range barred {
		r.barred[day.UTC()] = true
	}
	return true, nil
}
