package sink

import (
	"errors"
	"fmt"
)

// ErrUnregistered is returned by [Sink.Claim] for a lane that Postgres doesn't know yet: see [Sink.Register].
var ErrUnregistered = errors.New("the lane is not registered")

// FencedError says that somebody else has claimed the lane since: nothing was stored, and the buffer must be dropped.
type FencedError struct {
	Lane  int32
	Epoch int64 // the epoch that holds now
	Owner string
}

// Error names who holds the lane now.
func (e *FencedError) Error() string {
	return fmt.Sprintf("lane %d was claimed by %s (epoch %d)", e.Lane, e.Owner, e.Epoch)
}

// MovedError says that the lane's position is neither the batch's start nor its end, though the claim holds: a failover or a
// restore lost transactions, or an operator reset the lane. Nothing was stored.
type MovedError struct {
	Lane     int32
	Expected int64
	Next     int64
}

// Error names both positions.
func (e *MovedError) Error() string {
	return fmt.Sprintf("lane %d stands at offset %d in the database, not at %d where it was left", e.Lane, e.Next, e.Expected)
}

// RefusedError says that a lane can't be claimed until an operator has acted.
type RefusedError struct{ Reason string }

// Error gives the reason, and what to do.
func (e *RefusedError) Error() string { return e.Reason }

// HaltError says that a batch can't be stored and that trying again won't help: the lane stands still until an operator has
// acted. Other lanes go on.
type HaltError struct{ Err error }

func (e *HaltError) Error() string { return "the lane halts: " + e.Err.Error() }

// Unwrap gives the database's error.
func (e *HaltError) Unwrap() error { return e.Err }

// FatalError says that no lane can go on: configuration, privileges or schema need an operator.
type FatalError struct{ Err error }

func (e *FatalError) Error() string { return e.Err.Error() }

// Unwrap gives the database's error.
func (e *FatalError) Unwrap() error { return e.Err }
