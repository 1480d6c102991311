package query

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A table partition without a B-tree on timestamp, as deferred builds leave it until after its interval, would be sorted whole for each page. A BRIN tells cheaply which of its blocks
// hold some minutes. So such a window is read in pieces, from the side that is asked for first, and as soon as the page is full the rest is left unread.
type pieces struct {
	// first is the length of the first piece, and the least.
	first time.Duration
	// events is how many events a longer one may hold at first. Where nothing was stored for hours, time alone would lead from pieces that hold nothing to one that holds all.
	events int64
}

const (
	// pieceGrows is by how much each piece may be longer than the one before, and hold more events than were passed over before it. What matches rarely is then found by few statements, which each read the BRIN.
	pieceGrows = 4
	// longestPiece is the length from which a piece is all that remains.
	longestPiece = 365 * 24 * time.Hour
)

// usualPieces: at 10,000 events/s the first one holds 100,000, which the server sorts for a page in a tenth of a second.
var usualPieces = pieces{first: 10 * time.Second, events: 2_000}

// start is where a window is begun to be read in pieces: where the table partition begins, and newest first not later than now, as nothing or little is later.
func (w window) start(ascending bool, now time.Time) time.Time {
	if ascending {
		return later(w.from, w.partition.from)
	}
	return earlier(w.to, earlier(w.partition.to, now))
}

// near is the part of a window that is read first: up to size beyond the start.
func (w window) near(ascending bool, start time.Time, size time.Duration) window {
	switch {
	case size > longestPiece:
	case ascending:
		w.to = earlier(w.to, start.Add(size))
	default:
		w.from = later(w.from, start.Add(-size))
	}
	return w
}

// beyond is what remains of a window after its near part.
func (w window) beyond(ascending bool, near window) window {
	if ascending {
		w.from = near.to
	} else {
		w.to = near.from
	}
	return w
}

// ahead is what a window has of the future.
func (w window) ahead(now time.Time) window {
	w.from = later(w.from, now)
	return w
}

// empty tells that the window holds no instant.
func (w window) empty() bool { return !w.from.Before(w.to) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// fillByPieces is fill of a window whose table partition has no B-tree on timestamp. Whatever the pieces, they cover the window in its order, and don't overlap.
func (s *session) fillByPieces(ctx context.Context, c *chunk, q question, w window, after *position) error {
	ascending := q.filter.Ascending
	now := time.Now().Truncate(time.Microsecond) // as the database keeps it
	if ahead := w.ahead(now); !ahead.empty() && (!ascending || ahead == w) {
		held, err := s.held(ctx, ahead, s.r.pieces.events+1)
		switch {
		case err != nil:
			return err
		case held > s.r.pieces.events:
			now = w.to // our clock is behind, or a producer's ahead
		case held > 0 && ahead == w:
			return s.fillPiece(ctx, c, q, w, after)
		case ahead == w:
			return nil
		}
	}
	start := w.start(ascending, now)
	size, passed := s.r.pieces.first, int64(0)
	for first := true; !w.empty() && c.next == nil; first = false {
		piece, held := w.near(ascending, start, size), int64(1)
		if !first {
			var err error
			if piece, held, size, err = s.fit(ctx, w, ascending, start, size, max(s.r.pieces.events, pieceGrows*passed)); err != nil {
				return err
			}
		}
		if held > 0 {
			if err := s.fillPiece(ctx, c, q, piece, after); err != nil {
				return err
			}
		}
		passed += held
		w = w.beyond(ascending, piece)
		start = w.start(ascending, w.to)
		size *= pieceGrows
	}
	return nil
}

// held counts the events of a window, up to most.
func (s *session) held(ctx context.Context, w window, most int64) (held int64, err error) {
	err = s.read(ctx, heldStatement(w, most), func() {}, func(rows pgx.Rows) error { return rows.Scan(&held) })
	return held, err
}

// fit makes the next piece small enough to hold at most so many events, unless it is of the least length. It returns it, how many events it holds as far as they were counted, and its size.
func (s *session) fit(ctx context.Context, w window, ascending bool, start time.Time, size time.Duration, events int64) (window, int64, time.Duration, error) {
	for ; ; size /= pieceGrows {
		piece := w.near(ascending, start, size)
		held, err := s.held(ctx, piece, events+1)
		if err != nil || held <= events || size <= s.r.pieces.first {
			return piece, held, size, err
		}
	}
}
