package sink

import (
	"io"
	"slices"
	"sync"
	"time"

	"auditsink/internal/event"
)

// chunk is how much is encoded at a time: about what pgconn sends at a time.
const chunk = 64 << 10

// rowStream decodes, hashes and encodes records while COPY reads it, so that a batch needs no second copy of itself in memory
// and Postgres works while the next rows are made. Records that can't be rows are set aside.
type rowStream struct {
	// mu is held by Read and close. pgconn reads from a goroutine of its own, and when the connection breaks may still do so after
	// CopyFrom has returned.
	mu      sync.Mutex
	closed  bool
	decoder *event.Decoder
	lane    int32
	now     time.Time
	flushed int64
	records []event.Record
	next    int
	ended   bool
	buf     []byte
	unread  []byte

	rows  int64
	aside []aside
	// months are the first instants of the UTC months the rows fall in; within is the current one's bounds in microseconds.
	months []time.Time
	within [2]int64
	// barred are months without a table partition that can't have one: their rows are set aside.
	barred []time.Time
	// refused are the records, by offset, that the database is known to refuse: they are set aside.
	refused map[int64]event.Quarantine
}

// aside is a record that goes to quarantine.
type aside struct {
	record *event.Record
	event.Quarantine
}

func newRowStream(decoder *event.Decoder, lane int32, records []event.Record, barred []time.Time, now time.Time) *rowStream {
	return &rowStream{
		decoder: decoder, lane: lane, records: records, barred: barred, now: now, flushed: now.UnixMilli(),
		buf: append(make([]byte, 0, chunk+chunk/4), copyHeader...),
	}
}

// Read implements io.Reader with the next part of the COPY data.
func (s *rowStream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	if len(s.unread) == 0 {
		if s.ended {
			return 0, io.EOF
		}
		s.fill()
	}
	n := copy(p, s.unread)
	s.unread = s.unread[n:]
	return n, nil
}

// fill encodes about a chunk of rows; at the end it adds the trailer.
func (s *rowStream) fill() {
	b := s.buf // the header, the first time
	for ; len(b) < chunk && s.next < len(s.records); s.next++ {
		rec := &s.records[s.next]
		if quarantine, ok := s.refused[rec.Offset]; ok {
			s.aside = append(s.aside, aside{rec, quarantine})
			continue
		}
		row, quarantine := s.decoder.Take(rec, s.now)
		if quarantine != nil {
			s.aside = append(s.aside, aside{rec, *quarantine})
			continue
		}
		if row.Timestamp < s.within[0] || row.Timestamp >= s.within[1] {
			if !s.enter(row.Timestamp) {
				s.aside = append(s.aside, aside{rec, barredMonth})
				continue
			}
		}
		b = appendRow(b, row, s.lane, rec, s.flushed)
		s.rows++
	}
	if s.next == len(s.records) {
		b = append(b, copyTrailer...)
		s.ended = true
	}
	s.unread = b
	s.buf = b[:0]
}

var barredMonth = event.Quarantine{
	Reason: event.RejectedByDatabase,
	Detail: "timestamp: no table partition holds its month, and none is made for one outside the retention horizon as of today",
}

// enter notes the month of a row's timestamp. It reports false for a barred one.
func (s *rowStream) enter(micros int64) bool {
	t := time.UnixMicro(micros).UTC()
	month := time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	if slices.ContainsFunc(s.barred, month.Equal) {
		return false
	}
	s.within = [2]int64{month.UnixMicro(), month.AddDate(0, 1, 0).UnixMicro()}
	if !slices.ContainsFunc(s.months, month.Equal) {
		s.months = append(s.months, month)
	}
	return true
}

// close ends the stream for whoever still reads it.
func (s *rowStream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}
