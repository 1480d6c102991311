package query

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"auditsink/internal/postgres"
)

// Failure says why a read failed, as far as it matters to whoever asked.
type Failure uint8

// The failures.
const (
	Unexplained Failure = iota
	Invalid             // the question can't be answered as it is: an [InvalidError]
	NotFound            // [ErrNotFound]
	Busy                // too many read at once
	TimedOut            // it took too long
	Unavailable         // the database can't be reached, or isn't ready for us
)

// FailureOf tells the failure of an error that a [Reader] returned while its context held.
func FailureOf(err error) Failure {
	_, invalid := errors.AsType[*InvalidError](err)
	pg, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case invalid:
		return Invalid
	case errors.Is(err, ErrNotFound):
		return NotFound
	case errors.Is(err, postgres.ErrAcquireTimeout), answered && pg.Code == "53300":
		return Busy
	case errors.Is(err, ErrTimeout):
		return TimedOut
	}
	if c := postgres.Classify(err); c == postgres.Transient || c == postgres.Fatal {
		return Unavailable
	}
	return Unexplained
}
