"""Trained networks as integers: conversion, packing, graphs, engines, upscaling."""
