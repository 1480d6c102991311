package event

import "strconv"

// Reason says which rule a record breaks. Where several are broken the smallest counts, after the faults
// of the bytes (InvalidJSON, InvalidUnicode, NULCharacter), of which the first in the text does.
type Reason uint8

// The reasons, in the order of their precedence.
const (
	Empty Reason = iota + 1
	TooLarge
	InvalidJSON
	InvalidUnicode
	NULCharacter
	NotAnObject
	DuplicateKey
	TooDeep
	MissingField
	InvalidType
	InvalidValue
	InvalidTimestamp
	TimestampOutOfRange
	TooLong
	NumberOutOfRange
	HashMismatch
	SignatureMismatch
	RejectedByDatabase // given by the sink, never by Take
)

var reasonNames = [...]string{
	Empty:               "empty",
	TooLarge:            "too_large",
	InvalidJSON:         "invalid_json",
	InvalidUnicode:      "invalid_unicode",
	NULCharacter:        "nul_character",
	NotAnObject:         "not_an_object",
	DuplicateKey:        "duplicate_key",
	TooDeep:             "too_deep",
	MissingField:        "missing_field",
	InvalidType:         "invalid_type",
	InvalidValue:        "invalid_value",
	InvalidTimestamp:    "invalid_timestamp",
	TimestampOutOfRange: "timestamp_out_of_range",
	TooLong:             "too_long",
	NumberOutOfRange:    "number_out_of_range",
	HashMismatch:        "hash_mismatch",
	SignatureMismatch:   "signature_mismatch",
	RejectedByDatabase:  "rejected_by_database",
}

// Reasons returns all reasons in the order of their precedence.
func Reasons() []Reason {
	all := make([]Reason, 0, RejectedByDatabase)
	for r := Empty; r <= RejectedByDatabase; r++ {
		all = append(all, r)
	}
	return all
}

// String returns the reason's name as stored in audit_quarantine and used in metrics.
func (r Reason) String() string {
	if r < Empty || r > RejectedByDatabase {
		return "Reason(" + strconv.Itoa(int(r)) + ")"
	}
	return reasonNames[r]
}
