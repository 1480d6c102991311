package sink

import (
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"auditsink/internal/event"
)

const (
	// chunk is how much is encoded at a time: little enough to be in the processor's first cache when it is copied.
	chunk = 8 << 10
	// keepChunk bounds the buffer that is kept for the next batch: a record of a megabyte makes a chunk as large.
	keepChunk = 64 << 10
)

// scratch is what making rows takes, and is handed from batch to batch. A decoder holds as much as its largest record so far took, within bounds.
type scratch struct {
	decoder *event.Decoder
	buf     []byte
}

// rowStream decodes, hashes and encodes records while COPY reads it, so that a batch needs no second copy of itself in memory
// and Postgres works while the next rows are made. Records that can't be rows are set aside.
type rowStream struct {
	// mu is held by Read and close. pgconn reads from a goroutine of its own, and when the connection breaks may still do so after
	// CopyFrom has returned.
	mu      sync.Mutex
	closed  bool
	scratch *scratch
	lane    int32
	now     time.Time
	flushed int64
	records []event.Record
	next    int
	ended   bool
	unread  []byte // of the scratch buffer

	rows  int64
	aside []aside
	// days are the first instants of the UTC days the rows fall in; within is the current one's bounds in microseconds.
	days   map[time.Time]bool
	within [2]int64
	// barred are days without a table partition that can't have one: their rows are set aside.
	barred map[time.Time]bool
	// refused are the records, by offset, that the database is known to refuse: they are set aside.
	refused map[int64]event.Quarantine
}

// aside is a record that goes to quarantine.
type aside struct {
	record *event.Record
	event.Quarantine
}

func newRowStream(scratch *scratch, lane int32, records []event.Record, barred map[time.Time]bool, now time.Time) *rowStream {
	scratch.buf = append(scratch.buf[:0], copyHeader...)
	return &rowStream{scratch: scratch, lane: lane, records: records, barred: barred, now: now, flushed: now.UnixMilli()}
}

// Read implements io.Reader with the next part of the COPY data. It fills p to the end: pgconn sends what one Read gives as one message, by one
// system call, and each wakes the server.
func (s *rowStream) Read(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	for n < len(p) {
		if len(s.unread) == 0 {
			if s.ended {
				break
			}
			s.fill()
		}
		copied := copy(p[n:], s.unread)
		s.unread = s.unread[copied:]
		n += copied
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// fill encodes about a chunk of rows; at the end it adds the trailer.
func (s *rowStream) fill() {
	b := s.scratch.buf // the header, the first time
	for ; len(b) < chunk && s.next < len(s.records); s.next++ {
		rec := &s.records[s.next]
		if quarantine, ok := s.refused[rec.Offset]; ok {
			s.aside = append(s.aside, aside{rec, quarantine})
			continue
		}
		row, quarantine := s.scratch.decoder.Take(rec, s.now)
		if quarantine != nil {
			s.aside = append(s.aside, aside{rec, *quarantine})
			continue
		}
		if row.Timestamp < s.within[0] || row.Timestamp >= s.within[1] {
			if !s.enter(row.Timestamp) {
				s.aside = append(s.aside, aside{rec, barredDay})
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
	s.scratch.buf = b[:0]
}

var barredDay = event.Quarantine{
	Reason: event.RejectedByDatabase,
	Detail: "timestamp: no table partition holds its day, and none is made for one outside the retention horizon as of today",
}

// enter notes the day of a row's timestamp. It reports false for a barred one.
func (s *rowStream) enter(micros int64) bool {
	day := dayOf(micros)
	if s.barred[day] {
		return false
	}
	s.within = [2]int64{day.UnixMicro(), day.AddDate(0, 0, 1).UnixMicro()}
	if s.days == nil {
		s.days = map[time.Time]bool{}
	}
	s.days[day] = true
	return true
}

// dayOf is the first instant of the UTC day of a row's timestamp.
func dayOf(micros int64) time.Time {
	year, month, day := time.UnixMicro(micros).UTC().Date()
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

// byTime lists days in their order.
func byTime(days map[time.Time]bool) []time.Time {
	return slices.SortedFunc(maps.Keys(days), time.Time.Compare)
}

// close ends the stream for whoever still reads it.
func (s *rowStream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}
