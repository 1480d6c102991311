package sink

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"auditsink/internal/event"
	"auditsink/internal/postgres"
)

// search is the state of bisecting a refused batch. It outlives the attempts, so that one that breaks off (a lost connection, a missing
// table partition, a timeout) leaves less to do to the next.
type search struct {
	// refused are the records found to blame, by offset, and causes counts them by error.
	refused map[int64]event.Quarantine
	causes  map[string]int
	// tried is the number of records, from the first on, that are sorted out. The others are cut into ranges still to be tried: ends are where
	// these end, the next one's last.
	tried int
	ends  []int
	// immediate has deferred constraints speak at each COPY. That is wanted only once COMMIT has refused: what holds for the batch as a whole
	// need not hold for each part of it.
	immediate bool
}

// newSearch is for a batch of n records that was refused as a whole.
func newSearch(n int) *search {
	s := &search{refused: map[int64]event.Quarantine{}, causes: map[string]int{}}
	s.reset(n)
	return s
}

// reset has all n records tried again, but for those known to be refused.
func (s *search) reset(n int) {
	s.tried, s.ends = 0, append(s.ends[:0], n)
	s.halve()
}

// restart begins a transaction: what was sorted out in an earlier one is its first range.
func (s *search) restart() {
	if s.tried > 0 {
		s.tried, s.ends = 0, append(s.ends, s.tried)
	}
}

// next returns the range to be tried, and whether one is left.
func (s *search) next() (from, to int, ok bool) {
	if len(s.ends) == 0 {
		return 0, 0, false
	}
	return s.tried, s.ends[len(s.ends)-1], true
}

// pass notes that the range is sorted out.
func (s *search) pass() {
	last := len(s.ends) - 1
	s.tried, s.ends = s.ends[last], s.ends[:last]
}

// halve cuts the range in two. It reports false for a single record.
func (s *search) halve() bool {
	from, to, _ := s.next()
	if to-from < 2 {
		return false
	}
	s.ends = append(s.ends, from+(to-from)/2)
	return true
}

// mostly returns the most frequent error.
func (s *search) mostly() (cause string) {
	for c, n := range s.causes {
		if n > s.causes[cause] || n == s.causes[cause] && c < cause {
			cause = c
		}
	}
	return cause
}

// bisect sends the rows in ranges, each under a savepoint: one that is refused is undone and halved, until a single record is left, which is
// set aside. The first half goes first, so that ids keep the order of the lane, and of records that exclude each other the first stays.
// It returns all the records that can't be rows, in that order too.
func (a *attempt) bisect(ctx context.Context, conn *pgx.Conn) (out []aside, err error) {
	s, now := a.search, time.Now()
	s.restart()
	if s.immediate {
		if err := execute(ctx, conn, `SET CONSTRAINTS ALL IMMEDIATE`); err != nil {
			return nil, err
		}
	}
	if err := execute(ctx, conn, `SAVEPOINT range`); err != nil {
		return nil, err
	}
	for from, to, ok := s.next(); ok; from, to, ok = s.next() {
		stream := a.take(a.batch.Records[from:to], now)
		err := a.copyRange(ctx, conn, stream)
		after := `RELEASE SAVEPOINT range; SAVEPOINT range`
		switch {
		case err == nil:
			s.pass()
			out = append(out, stream.aside...)
		case errors.Is(err, errRecord):
			after = `ROLLBACK TO SAVEPOINT range`
			if s.halve() {
				break
			}
			// The range comes up again, and then the record is set aside like those that Take refuses.
			if err := a.blame(&a.batch.Records[from], err, now); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
		if err := execute(ctx, conn, after); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// copyRange is copyRows, without the COPY where no row is left.
func (a *attempt) copyRange(ctx context.Context, conn *pgx.Conn, stream *rowStream) error {
	if stream.fill(); stream.ended && stream.rows == 0 {
		a.release(stream)
		return nil
	}
	return a.copyRows(ctx, conn, stream)
}

func execute(ctx context.Context, conn *pgx.Conn, sql string) error {
	if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return fmt.Errorf("bisect a batch: %s: %w", sql, err)
	}
	return nil
}

// blame has a record set aside for the error that it met alone. Where that makes too many, the lane halts instead, at once.
func (a *attempt) blame(rec *event.Record, err error, now time.Time) error {
	s, b := a.search, a.batch
	cause := "an error" // never seen: errRecord comes with a refusal
	if refusal, ok := errors.AsType[*refusal](err); ok {
		cause = refusal.cause()
	}
	s.refused[rec.Offset] = rejected(cause)
	s.causes[cause]++
	if !a.brake.trips(b.Claim.LaneID, now, len(s.refused), len(b.Records)) {
		return nil
	}
	return &HaltError{fmt.Errorf("the database refused %d of the first %d records of a batch of %d, from offset %d on, and %d of this lane within a minute, "+
		"mostly with %s: that is systemic, so none of them was stored or quarantined; mend the cause (a constraint or trigger of audit_log, or the producer), "+
		"then run `auditsink lanes accept`",
		len(s.refused), s.tried+1, len(b.Records), b.Records[0].Offset, len(s.refused)+a.brake.recent(b.Claim.LaneID, now), s.mostly())}
}

// rejected is what a record is quarantined with that the database refuses for a cause.
func rejected(cause string) event.Quarantine {
	return event.Quarantine{
		Reason: event.RejectedByDatabase,
		Detail: cause + ": the database refused the row; mend what refuses it, or the producer, and redrive the record",
	}
}

// refusedCommit prepares for the next attempt after COMMIT was refused over a row: a deferred constraint did so.
func (a *attempt) refusedCommit(err error) error {
	err = fmt.Errorf("COMMIT: %w", withoutContent(err))
	switch n := len(a.batch.Records); {
	case n == 0 || a.search != nil && a.search.immediate:
		return err // each record passed by itself
	case a.search == nil:
		a.search = newSearch(n)
	default:
		a.search.reset(n)
	}
	a.search.immediate = true
	return fmt.Errorf("%w: %w", errRecord, err)
}

// searched remembers what the database refused of a stored batch.
func (a *attempt) searched() {
	s, b := a.search, a.batch
	a.brake.add(b.Claim.LaneID, time.Now(), len(s.refused))
	if len(s.refused) > 0 {
		a.log.Warn("the database refused records, which are in quarantine now", zap.Int32("lane_id", b.Claim.LaneID), zap.Int64("from", b.Claim.Next),
			zap.Int("refused", len(s.refused)), zap.Int("records", len(b.Records)), zap.String("mostly", s.mostly()))
	}
}

// refusal is an error of class Row without what the server says in words, for that may quote the event.
type refusal struct{ pg *pgconn.PgError }

func (r *refusal) Error() string { return "refused with " + r.cause() }

// Unwrap gives the server's error, for its class.
func (r *refusal) Unwrap() error { return r.pg }

// copyColumn finds the column in the context of an error in binary COPY data, which quotes no data. It is in the server's language.
var copyColumn = regexp.MustCompile(`(?m)^COPY audit_log, line \d+, column (\w+)$`)

// cause says what the server refused, by names of the schema alone.
func (r *refusal) cause() string {
	cause, column := "SQLSTATE "+r.pg.Code, r.pg.ColumnName
	if found := copyColumn.FindStringSubmatch(r.pg.Where); column == "" && found != nil {
		column = found[1]
	}
	if r.pg.ConstraintName != "" {
		cause += ", constraint " + r.pg.ConstraintName
	}
	if column != "" {
		cause += ", column " + column
	}
	return cause
}

// withoutContent makes a refusal of an error of class Row.
func withoutContent(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && postgres.Classify(err) == postgres.Row {
		return &refusal{pg}
	}
	return err
}
