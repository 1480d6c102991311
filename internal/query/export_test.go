package query

import "time"

// Cut makes the reader begin with other pieces of what has no B-tree on timestamp.
func (r *Reader) Cut(first time.Duration, events int64) { r.pieces = pieces{first, events} }

// Waiting counts those who wait for a read under way.
func (c *Cache) Waiting() (n int) {
	c.flights.mu.Lock()
	defer c.flights.mu.Unlock()
	for _, one := range c.flights.by {
		n += one.waiting
	}
	return n
}

// MaxPause is the longest time for which Redis is left alone, and Calm is for how long it must not have refused.
const (
	MaxPause = maxPause
	Calm     = calm
	Patience = patience
	Rest     = rest
)

// KeyOf is the key in the cache of a page, or of a count where limit is 0.
func KeyOf(s Scope, f Filter, limit int, after string, most int64) ([32]byte, error) {
	q, err := ask(s, f)
	if err != nil {
		return [32]byte{}, err
	}
	p, err := q.position(after)
	switch {
	case err != nil:
		return [32]byte{}, err
	case limit == 0:
		return key(keyCount, q, most), nil
	}
	return pageKey(q, p, limit), nil
}
