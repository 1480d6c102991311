package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Class says what an error asks for (DESIGN.md §6; codes: PostgreSQL Appendix A).
type Class uint8

// The classes of errors.
const (
	// Transient errors pass: try again, without end, with growing pauses.
	Transient Class = iota + 1
	// NoPartition means that no table partition holds the row's timestamp.
	NoPartition
	// Row errors are the fault of one record's content.
	Row
	// Fatal errors need an operator: configuration, privileges, schema.
	Fatal
	// Unknown errors stop the lane, naming the code.
	Unknown
)

// String is the name used in logs and metrics.
func (c Class) String() string {
	switch c {
	case Transient:
		return "transient"
	case NoPartition:
		return "no_partition"
	case Row:
		return "row"
	case Fatal:
		return "fatal"
	case Unknown:
		return "unknown"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Classify tells the class of an error that a statement, a connection attempt or an acquire gave. A connection URL that can't be
// used is fatal; what else isn't an answer of the server is a lost or refused connection, and so transient.
func Classify(err error) Class {
	if _, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
		return Fatal
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return Transient
	}
	// A row outside every partition is the only check violation that names a table and no constraint: one that a trigger raises names neither.
	if pg.Code == "23514" && pg.ConstraintName == "" && pg.TableName != "" {
		return NoPartition
	}
	switch pg.Code {
	case "40001", "40P01", "40003", "55P03":
		return Transient
	}
	switch pg.Code[:2] {
	case "08", "25", "53", "57", "58":
		return Transient
	case "22", "23":
		return Row
	case "28", "3D", "3F", "42":
		return Fatal
	}
	return Unknown
}

// IsReadOnly reports whether the server refused since it takes no writes: a standby, or a demoted primary.
// The connection should be dropped, for its successor may reach the new primary.
func IsReadOnly(err error) bool { return code(err) == "25006" }

// IsLocked reports whether a lock wasn't to be had in time.
func IsLocked(err error) bool { return code(err) == "55P03" }

func code(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// Explain adds to an error what an operator can do about it. An error it has nothing to add to stays as it is.
func Explain(err error) error {
	hint := ""
	switch c := code(err); {
	case c == "28P01" || c == "28000":
		hint = "Postgres refused the user or the password: check both in AUDITSINK_POSTGRES_URL, and pg_hba.conf on the server"
	case c == "3D000":
		hint = "the database does not exist: create it (createdb NAME), or correct its name in AUDITSINK_POSTGRES_URL"
	case c == "3F000" || c == "42P01" || c == "42703":
		hint = "the schema is missing or another version's: run `auditsink migrate up` on this database"
	case c == "42501":
		hint = "the database user lacks a privilege: grant it, or use the owner of the tables"
	case c == "25006":
		hint = "the database is read-only: a standby, or default_transaction_read_only is on; AUDITSINK_POSTGRES_URL must name the primary"
	case c == "26000" || c == "42P05":
		hint = "prepared statements got lost on the way: behind a pooler in transaction mode set AUDITSINK_POSTGRES_PREPARED=false"
	case c == "53300":
		hint = "the server is out of connections: raise max_connections, or lower AUDITSINK_POOL_MAX_CONNS times the replicas"
	case errors.Is(err, ErrAcquireTimeout):
		hint = "all connections are busy: raise AUDITSINK_POOL_MAX_CONNS or AUDITSINK_POOL_ACQUIRE_TIMEOUT, or see what holds them (pg_stat_activity)"
	case errors.Is(err, context.Canceled): // it was us who gave up
	case c == "" && err != nil && strings.Contains(err.Error(), "connect"):
		hint = "Postgres can't be reached: is it running, and do host, port and sslmode of AUDITSINK_POSTGRES_URL fit?"
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%s (%w)", hint, err)
}
