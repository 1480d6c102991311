package event

import (
	"strconv"
	"strings"
)

// fault is a broken rule, kept as parts so that noting one costs nothing; its zero value is none.
type fault struct {
	reason Reason
	field  field
	at     int    // byte offset in the value, or -1
	text   string // what is wrong and what to do
}

// note keeps f if its reason comes before that of the fault known so far.
func (known *fault) note(f fault) {
	if known.reason == 0 || f.reason < known.reason {
		*known = f
	}
}

// quarantine returns the fault in words: where, what and what to do.
func (known *fault) quarantine() *Quarantine {
	where := known.field.String()
	if known.at >= 0 {
		where = strings.TrimSpace(where + " at byte " + strconv.Itoa(known.at))
	}
	return &Quarantine{Reason: known.reason, Detail: where + ": " + known.text}
}
