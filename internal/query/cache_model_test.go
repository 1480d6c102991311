package query_test

import (
	"fmt"
	"strconv"
	"sync/atomic"
)

// versions are the states of a database, one after the other, in which each lacks rows that the one before had.
type versions struct{ now, settled atomic.Int64 }

func newVersions() *versions { return &versions{} }

func (v *versions) current() string { return strconv.FormatInt(v.now.Load(), 10) }

// least is the oldest version that a read that begins now may show.
func (v *versions) least() int64 { return v.settled.Load() }

// replace removes rows and tells the cache.
func (v *versions) replace(invalidate func() error) error {
	next := v.now.Add(1)
	err := invalidate()
	if err == nil {
		v.settled.Store(next)
	}
	return err
}

func (v *versions) check(answer string, least int64) error {
	got, err := strconv.ParseInt(answer, 10, 64)
	if err != nil {
		return fmt.Errorf("a damaged answer: %w", err)
	}
	if got < least || got > v.now.Load() {
		return fmt.Errorf("version %d was served when %d was invalidated and %d is current", got, least-1, v.now.Load())
	}
	return nil
}
