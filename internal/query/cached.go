package query

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
)

// What an answer in the cache is of. It begins the key, with a version that changes when what is kept does.
const (
	keyEvents = "events 1"
	keyEvent  = "event 1"
	keyCount  = "count 1"
)

// key is what an answer in the cache is found by. The numbers are always as many for the same kind, so that no two questions have one key.
func key(kind string, q question, numbers ...int64) [sha256.Size]byte {
	b := appendText(nil, kind)
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // the same 64 bits
	}
	return sha256.Sum256(q.appendTo(b))
}

func pageKey(q question, after *position, limit int) [sha256.Size]byte {
	if after == nil {
		return key(keyEvents, q, int64(limit), 0, 0, 0)
	}
	return key(keyEvents, q, int64(limit), 1, after.at, after.id)
}

// cached is an answer about a range: from the cache where there is one, else of load. It is the same either way, and comes within the timeout.
func cached[T any](ctx context.Context, r *Reader, key [sha256.Size]byte, from, to time.Time, load func(context.Context) (T, error)) (answer T, err error) {
	if r.o.Cache == nil {
		return load(ctx)
	}
	ctx, cancel := r.within(ctx)
	defer cancel()
	o := &r.o.Cache.options
	data, err := r.o.Cache.Do(ctx, key, TTL(o.Now(), from, to, o.TTL), func(ctx context.Context) ([]byte, error) {
		answer, err := load(ctx)
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false) // details stay as they are
		if err := encoder.Encode(answer); err != nil {
			return nil, fmt.Errorf("encode an answer: %w", err)
		}
		return b.Bytes(), nil
	})
	if err == nil {
		err = json.Unmarshal(data, &answer)
	}
	return answer, err
}

// UnmarshalJSON reads what an event is written as.
func (e *Event) UnmarshalJSON(data []byte) error {
	type plain Event
	if err := json.Unmarshal(data, (*plain)(e)); err != nil {
		return fmt.Errorf("read an event: %w", err)
	}
	if string(e.Details) == "null" {
		e.Details = nil
	}
	return nil
}
