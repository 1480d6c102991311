package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Answer is a page of events and the range it was asked for.
type Answer struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Events []Event   `json:"events"`
	Next   *string   `json:"next"` // the cursor of the page that follows; null at the end
	Count  *Count    `json:"count,omitempty"`
}

// countedExactly is up to how many events a count is exact: more would take long, and whoever asks needs to know no more than that they are many.
const countedExactly = 100_000

// Ask answers a question in JSON: a page, and how many events there are where that is asked too, both within one timeout.
func (r *Reader) Ask(ctx context.Context, scope Scope, q Question) (Answer, error) {
	ctx, cancel := r.within(ctx)
	defer cancel()
	page, err := r.Events(ctx, scope, q.Filter, q.Limit, q.After)
	if invalid, ok := errors.AsType[*InvalidError](err); ok && invalid.Parameter == "after" {
		return Answer{}, &InvalidError{"cursor", invalid.Problem}
	}
	if err != nil {
		return Answer{}, err
	}
	a := Answer{From: q.Filter.From, To: q.Filter.To, Events: page.Events}
	if a.Events == nil {
		a.Events = []Event{}
	}
	if page.Next != "" {
		a.Next = &page.Next
	}
	if q.Count {
		count, err := r.Count(ctx, scope, q.Filter, countedExactly)
		if err != nil {
			return Answer{}, err
		}
		a.Count = &count
	}
	return a, nil
}

// streamBytes is how much of an export is held before it is written.
const streamBytes = 32 << 10

// errLimit ends an export at its limit.
var errLimit = errors.New("the limit is reached")

// Stream writes all events that a question chooses, oldest or newest first, in NDJSON or CSV, up to its limit where it has one. It returns how many it wrote,
// also beside an error: then what was written is a part only.
func (r *Reader) Stream(ctx context.Context, scope Scope, q Question, w io.Writer) (events int64, err error) {
	buf := append(make([]byte, 0, 2*streamBytes), q.Format.Header()...)
	var held int64
	flush := func() error {
		if _, err := w.Write(buf); err != nil {
			return fmt.Errorf("write the events: %w", err)
		}
		buf, events, held = buf[:0], events+held, 0
		if cap(buf) > 64*streamBytes { // after an event that was very large
			buf = make([]byte, 0, 2*streamBytes)
		}
		return nil
	}
	err = r.Export(ctx, scope, q.Filter, func(e Event) (err error) {
		if buf, err = q.Format.Append(buf, &e); err != nil {
			return err
		}
		held++
		if len(buf) >= streamBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		if events+held == int64(q.Limit) {
			return errLimit
		}
		return nil
	})
	if err != nil && !errors.Is(err, errLimit) {
		return events, err
	}
	err = flush()
	return events, err
}
