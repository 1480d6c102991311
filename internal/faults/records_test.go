package faults

var recordScenarios = []scenario{}
