package faults

import (
	"fmt"
	"slices"
	"strings"
)

// kind says what is wrong.
type kind string

const (
	missing  kind = "missing"  // acknowledged, and neither a row, nor quarantined, nor within a gap on record
	doubled  kind = "doubled"  // the same offset or the same event twice
	invented kind = "invented" // stored, and sent by nobody, aborted, or of another offset
	altered  kind = "altered"  // a column is not what was sent
	reason   kind = "reason"   // quarantined for another reason, or though it is a row, or the other way round
	bytesOf  kind = "bytes"    // quarantined with other bytes than were sent
	order    kind = "order"    // ids of a lane that don't grow with its offsets
	position kind = "position" // not at the end of the log, or rows beyond it
	offset   kind = "offset"   // Kafka's committed offset is above the position, or not at it in the end
	gap      kind = "gap"      // on record where there should be none
	halted   kind = "halted"   // a lane stands still that should not
	brokers  kind = "log"      // the log isn't what the brokers acknowledged: theirs, not ours
)

// finding is one thing that is wrong, and where.
type finding struct {
	kind   kind
	lane   string
	offset int64 // -1 where it isn't about one
	text   string
}

func (f finding) String() string {
	at := f.lane
	if f.offset >= 0 {
		at = fmt.Sprintf("%s@%d", f.lane, f.offset)
	}
	return fmt.Sprintf("%-8s %s: %s", f.kind, at, f.text)
}

// findings collects what is wrong: all of it is counted, and the first few of each kind are told.
type findings struct {
	counts map[kind]int
	told   []finding
}

// tellMost is how many findings of a kind are told.
const tellMost = 8

func (f *findings) add(k kind, lane string, offset int64, format string, args ...any) {
	if f.counts == nil {
		f.counts = map[kind]int{}
	}
	if f.counts[k]++; f.counts[k] <= tellMost {
		f.told = append(f.told, finding{k, lane, offset, fmt.Sprintf(format, args...)})
	}
}

// join adds what was found elsewhere.
func (f *findings) join(others *findings) {
	if f.counts == nil {
		f.counts = map[kind]int{}
	}
	for k, n := range others.counts {
		f.counts[k] += n
	}
	f.told = append(f.told, others.told...)
}

// kinds are those that were found, sorted.
func (f *findings) kinds() []kind {
	var all []kind
	for k := range f.counts {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func (f *findings) String() string {
	var b strings.Builder
	for _, k := range f.kinds() {
		fmt.Fprintf(&b, "%d %s; ", f.counts[k], k)
	}
	for _, one := range f.told {
		b.WriteString("\n  ")
		b.WriteString(one.String())
	}
	return b.String()
}
